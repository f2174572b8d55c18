"""The output head and the log-probabilities of its logits over a part of the positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from .cross_entropy import token_log_probs_
from .layers import instead

CHUNK_LOGITS = 1 << 24
"""Logits made at a time, 64 MiB in fp32: enough rows for a fast product, and a small part of any memory."""

Logits = Callable[[Tensor], Tensor]
Reduction = Callable[..., tuple[Tensor, ...]]
"""What is made of logits [positions, vocab] and of further tensors [positions, ...]: tensors [positions, ...] of which
each row comes from its own position alone. It may write over the logits."""


def chunked_log_probs(hidden: Tensor, targets: Tensor, logits: Logits, vocabulary: int, head_trains: bool) -> Tensor:
    """log p(target) in fp32, [positions], for hidden states [positions, hidden size] that `logits` makes logits of.

    A log-probability depends on its own hidden state alone. So where the head is frozen the gradient with respect to
    the hidden state is worked out at once, up to the factor that comes in the backward, and nothing is computed twice.
    A head that trains is run again in the backward.
    """
    rows = max(1, CHUNK_LOGITS // vocabulary)
    parts = list(zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True))
    if not torch.is_grad_enabled() or not (hidden.requires_grad or head_trains):
        return torch.cat([token_log_probs_(logits(part), target) for part, target in parts])
    if head_trains:
        return torch.cat([checkpoint(_log_probs, logits, *part, use_reentrant=False) for part in parts])
    made = [_with_gradient(logits, part.detach(), target) for part, target in parts]
    log_probs, gradients = (torch.cat(each) for each in zip(*made, strict=True))
    result: Tensor = _Scaled.apply(hidden, log_probs, gradients)  # type: ignore[no-untyped-call]
    return result


def chunked(
    hidden: Tensor, along: Sequence[Tensor], logits: Logits, vocabulary: int, reduce: Reduction
) -> list[Tensor]:
    """What `reduce` makes of the logits of hidden states [positions, hidden size], and of `along`, [positions, ...].

    A part of the positions is run again in the backward, whose gradients for several results nobody knows before.
    """
    rows = max(1, CHUNK_LOGITS // vocabulary)
    parts = zip(*(torch.split(each, rows) for each in (hidden, *along)), strict=True)
    made = [checkpoint(_reduced, logits, reduce, *part, use_reentrant=False) for part in parts]
    return [torch.cat(each) for each in zip(*made, strict=True)]


def _reduced(logits: Logits, reduce: Reduction, hidden: Tensor, *along: Tensor) -> tuple[Tensor, ...]:
    return reduce(logits(hidden), *along)


def _log_probs(logits: Logits, hidden: Tensor, targets: Tensor) -> Tensor:
    """With operations whose saved tensors a checkpoint can let go of."""
    return logits(hidden).log_softmax(-1, dtype=torch.float32).gather(1, targets[:, None])[:, 0]


def _with_gradient(logits: Logits, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probabilities of some positions, and their gradients with respect to the hidden states."""
    with torch.enable_grad():
        inputs = hidden.requires_grad_()
        log_probs = token_log_probs_(logits(inputs), targets)
        (gradient,) = torch.autograd.grad(log_probs.sum(), inputs)
    return log_probs.detach(), gradient


class _Scaled(torch.autograd.Function):
    """Log-probabilities whose gradients are known: the backward scales each row by what comes for it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, log_probs: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return log_probs.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * upstream[0][:, None].to(gradients.dtype), None, None


@dataclass
class _Body(BaseModelOutputWithPastAndCrossAttentions):
    """What the body of a model of any family returns, as far as its head asks for it."""

    router_logits: tuple[Tensor, ...] | None = None


@contextmanager
def _body_given(base: Any, hidden: Tensor) -> Iterator[None]:
    with instead(base.base_model, lambda *_, **__: _Body(last_hidden_state=hidden)):
        yield


def head_of_model(base: Any) -> Logits:
    """The model's own way from hidden states [positions, hidden size] to logits [positions, vocab], caps and all.

    Past any wrapper around it: each of several processes has its own number of parts, and waits for no other.
    """

    def logits(hidden: Tensor) -> Tensor:
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with _body_given(base, hidden[None]):
            found: Tensor = base(input_ids=ids, use_cache=False).logits[0]
        return found

    return logits
