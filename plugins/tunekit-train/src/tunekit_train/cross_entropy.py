"""Log-probabilities of given tokens, with the gradient computed at once, in the buffer of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Logits worked on at a time in fp32: 16 MiB, so that the fp32 copy stays in the cache and out of the peak."""


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        keep = ctx.needs_input_grad[0]
        out = logits.new_empty(logits.shape[0], dtype=torch.float32)  # [seq]
        rows = max(1, CHUNK_ELEMENTS // logits.shape[1])
        pieces = (torch.split(tensor, rows) for tensor in (logits, targets, out))
        for part, target, into in zip(*pieces, strict=True):
            log_probs = torch.log_softmax(part, dim=-1, dtype=torch.float32)  # [rows, vocab]
            into.copy_(log_probs.gather(1, target[:, None])[:, 0])
            if keep:
                probs = log_probs.exp_()
                probs.scatter_add_(1, target[:, None], probs.new_full((len(target), 1), -1.0))
                part.copy_(probs)
        ctx.gradient = logits if keep else None
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        assert ctx.gradient is not None, "the logits were used up by an earlier backward"
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(gradients[0][:, None].neg().to(gradient.dtype)), None


def token_log_probs_(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log p(target) in fp32, [seq], for `logits` [seq, vocab] and `targets` [seq], using up the logits.

    d log p(target) / d logits is onehot(target) - softmax(logits). Where a gradient is wanted, softmax - onehot is
    written over the logits during the forward, so that no second buffer of [seq, vocab] is ever needed. The logits hold
    no logits afterwards, and backward works once.
    """
    result: Tensor = _TokenLogProbs.apply(logits, targets)  # type: ignore[no-untyped-call]
    return result
