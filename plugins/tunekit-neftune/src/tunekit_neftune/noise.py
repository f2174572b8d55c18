"""Noise on embeddings whose size follows the length of each sequence, however the sequences lie in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def add_noise_(model: Any, alpha: float) -> Callable[[], None]:
    """Make the model's input embedding add noise in training mode; return what takes it back.

    Each number gets alpha e / sqrt(L d) with e uniform in [-1, 1), L the length of its sequence and d the embedding's
    width. L is read from the arguments of the transformer body, as the embedding itself sees tokens only. The hook
    sits on the body because PEFT calls the `forward` of what it wraps, which passes by the hooks of the whole model.
    Numbers come from torch's global generator, whose state checkpoints keep.
    """
    body = getattr(model, "base_model", model)
    lengths: list[Tensor | None] = [None]
    active = [True]

    def read_lengths(module: Any, positional: Any, arguments: dict[str, Any]) -> None:
        lengths[0] = sequence_lengths(**arguments)

    def forget_lengths(module: Any, inputs: Any, output: Any) -> None:
        lengths[0] = None

    def add_noise(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return noisy(output, alpha, lengths[0]) if active[0] and module.training else output

    handles = [
        body.register_forward_pre_hook(read_lengths, with_kwargs=True),
        body.register_forward_hook(forget_lengths, always_call=True),
        model.get_input_embeddings().register_forward_hook(add_noise),
    ]

    def undo() -> None:
        active[0] = False  # PEFT copies modules that train whole, with their hooks, out of reach of the handles
        for handle in handles:
            handle.remove()

    return undo


def noisy(embedded: Tensor, alpha: float, lengths: Tensor | None) -> Tensor:
    """Add noise to float[batch seq dim]. `lengths` float[batch seq] are those of each token's sequence; None: seq."""
    noise = torch.empty_like(embedded, dtype=torch.float32).uniform_(-1, 1)
    length = embedded.shape[1] if lengths is None else lengths.to(embedded.device)[..., None]  # [batch seq 1]
    size = alpha / (torch.as_tensor(length, device=embedded.device) * embedded.shape[-1]).sqrt()
    return embedded + (noise * size).to(embedded.dtype)


def sequence_lengths(
    cu_seq_lens_q: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **others: Any,
) -> Tensor | None:
    """Work out the length of each token's sequence, float[batch seq], from a model's arguments; None: undivided.

    `cu_seq_lens_q` [sequences + 1] are the borders of sequences laid end to end; a two-dimensional `attention_mask`
    [batch seq] marks what is not padding; where `position_ids` [batch seq] stop growing by one, a sequence starts.
    """
    if cu_seq_lens_q is not None:
        lengths = cu_seq_lens_q.diff()
        return lengths.repeat_interleave(lengths)[None].float()
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        return attention_mask.sum(1, keepdim=True).clamp(min=1).expand_as(attention_mask).float()
    if position_ids is None or position_ids.ndim != 2:
        return None
    starts = position_ids.diff(dim=1, prepend=position_ids[:, :1]) != 1
    starts[:, 0] = False
    owners = starts.cumsum(1)  # [batch seq], which sequence of its row a token belongs to
    counts = torch.zeros_like(owners).scatter_add_(1, owners, torch.ones_like(owners))
    return counts.gather(1, owners).float()
