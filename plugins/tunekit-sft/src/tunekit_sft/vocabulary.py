"""What the whole vocabulary says at the supervised positions, beside the log-probability of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tunekit_train import Forward, Layout, Need
from tunekit_train.cross_entropy import CHUNK_ELEMENTS


@dataclass(frozen=True)
class Vocabulary:
    """At each supervised position, [supervised] each, in the order of the batch's sequences.

    `log_probs` of the token, `means` of the log-probabilities over the vocabulary (both fp32, with gradient), whether
    the token is the `likeliest`, and its loss weight in `weights`.
    """

    log_probs: Tensor
    means: Tensor
    likeliest: Tensor
    weights: Tensor


@dataclass(frozen=True)
class VocabularyScores(Need[Vocabulary]):
    """Log-probabilities of the supervised tokens, their means over the vocabulary, and what is likeliest.

    Costs one run of the model, the head at the supervised positions, and two passes over the logits, made while a part
    of them is in the cache. It needs no second buffer of them.
    """

    chunks: ClassVar[bool] = True

    def logits_at(self, layout: Layout) -> Tensor:
        """The supervised positions."""
        return layout.positions

    def provide(self, forward: Forward) -> Vocabulary:
        """fp32, with gradient."""
        layout = forward.layout
        own, means, likeliest = forward.reduced(vocabulary_scores_, layout.positions, layout.targets)
        return Vocabulary(own, means, likeliest, layout.weights)


class _VocabularyScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keep = ctx.needs_input_grad[0]
        dtype = torch.promote_types(logits.dtype, torch.float32)
        found, means = (logits.new_empty(len(logits), dtype=dtype) for _ in range(2))  # [seq] each
        likeliest = logits.new_empty(len(logits), dtype=torch.bool)
        rows = max(1, CHUNK_ELEMENTS // logits.shape[1])
        pieces = (torch.split(tensor, rows) for tensor in (logits, targets, found, means, likeliest))
        for part, target, own, mean, first in zip(*pieces, strict=True):
            log_probs = torch.log_softmax(part, dim=-1, dtype=dtype)  # [rows, vocab]
            own.copy_(log_probs.gather(1, target[:, None])[:, 0])
            mean.copy_(log_probs.mean(-1))
            first.copy_(own >= log_probs.amax(-1))
            if keep:
                probs = log_probs.exp_()
                probs.scatter_add_(1, target[:, None], probs.new_full((len(target), 1), -1.0))
                part.copy_(probs)
        ctx.save_for_backward(*((logits, targets) if keep else ()))
        ctx.mark_non_differentiable(likeliest)
        ctx.set_materialize_grads(False)
        return found, means, likeliest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        gradient = logits.detach()  # [seq, vocab]: softmax - onehot
        of_own, of_mean, _ = gradients
        both = sum(each for each in (of_own, of_mean) if each is not None)
        assert isinstance(both, Tensor), "backward comes with a gradient"
        gradient.mul_(both[:, None].neg().to(gradient.dtype))
        if of_mean is not None:
            each = of_mean[:, None].to(gradient.dtype)
            gradient.add_(each / gradient.shape[1]).scatter_add_(1, targets[:, None], -each)
        return gradient, None


def vocabulary_scores_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(target), mean_v log p_v, and whether the target is likeliest, [seq] each, using up the logits.

    `logits` are [seq, vocab], `targets` [seq]. With V tokens in the vocabulary,

        d log p(target) / d logits = onehot - softmax
        d mean_v log p_v / d logits = 1 / V - softmax

    Where a gradient is wanted, softmax - onehot is written over the logits during the forward, and backward makes
    either from it in place. The logits hold no logits afterwards, and backward works once.
    """
    result: tuple[Tensor, Tensor, Tensor] = _VocabularyScores.apply(logits, targets)  # type: ignore[no-untyped-call]
    return result
