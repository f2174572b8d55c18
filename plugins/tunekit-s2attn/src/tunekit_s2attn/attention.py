"""Shifted sparse attention: attention inside groups of each sequence, whose borders half of the heads see shifted.

LongLoRA: *Efficient Fine-tuning of Long-Context Large Language Models*, arXiv 2309.12307. A sequence is cut into groups
of G tokens; the first half of the heads attends inside these, the second half inside groups that begin G/2 later. What
the paper wraps around, the first and the last G/2 tokens, are two groups here: so no token sees a later one, which the
paper reaches by a mask. Here the groups are of each sequence, not of the batch, and a sequence of at most G tokens is
attended to whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunekit.errors import TunekitError
from tunekit_train.attentions import SegmentAttention, Traits, register
from tunekit_train.segments import segments_attention

_TRAITS = Traits(
    sharing="groups are counted from the beginning of each sequence, however long a prompt it shares",
    evaluation="attention is in groups while training, and whole otherwise",
)


@dataclass(frozen=True)
class ShiftedSparse(SegmentAttention):
    """Attention in groups of so many tokens while the model trains; otherwise whole."""

    group: int
    traits = _TRAITS

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attend, see `SegmentAttention`.

        Rows that are padded are laid end to end for the time being; what comes out at padding is zero.
        """
        whole = not module.training or query.shape[2] != key.shape[2]
        if whole:
            return segments_attention(module, query, key, value, attention_mask, **options)
        borders, key_borders = options.pop("cu_seq_lens_q", None), options.pop("cu_seq_lens_k", None)
        positions = options.pop("position_ids", None)
        if borders is not None:
            if key_borders is not None and not torch.equal(borders, key_borders):
                raise RuntimeError("groups cannot be counted where sequences share a prompt; set share_prompts: false")
            return self._attend(module, (query, key, value), borders.diff().tolist(), options), None
        real = _real(query, attention_mask)  # [batch seq]
        _refuse_restarting(positions, real)
        parts = [tensor.transpose(1, 2)[real].transpose(0, 1)[None] for tensor in (query, key, value)]
        row = self._attend(module, (parts[0], parts[1], parts[2]), real.sum(1).tolist(), options)
        out = row.new_zeros(*real.shape, *row.shape[2:])
        return out.masked_scatter(real[..., None, None], row), None

    def _attend(
        self, module: torch.nn.Module, parts: tuple[Tensor, Tensor, Tensor], lengths: list[int], options: dict[str, Any]
    ) -> Tensor:
        """Attend in one row of sequences, [1, heads, seq, head_dim] each; returns [1, seq, heads, head_dim]."""
        sinks = options.pop("s_aux", None)
        query, key, value = parts
        if key.shape[1] % 2 or query.shape[1] % 2:
            key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for each in (key, value))
        halves = zip(*(each.chunk(2, dim=1) for each in (query, key, value)), strict=True)
        out, first = [], 0
        for shift, half in zip((0, self.group // 2), halves, strict=True):
            borders = torch.tensor([0, *groups(lengths, self.group, shift)], dtype=torch.int32).cumsum(0)
            heads = half[0].shape[1]
            given = {**options, "cu_seq_lens_q": borders}
            given["s_aux"] = None if sinks is None else sinks[first : first + heads]
            first += heads
            out.append(segments_attention(module, half[0], half[1], half[2], None, **given)[0])
        return torch.cat(out, dim=2)


def groups(lengths: list[int], group: int, shift: int) -> list[int]:
    """The lengths of the groups of sequences, one sequence after the other: a shorter one first where it is shifted."""
    found: list[int] = []
    for length in lengths:
        first = shift if shift and length > group else min(group, length)
        rest = length - first
        found += [first, *[group] * (rest // group), *([rest % group] if rest % group else [])]
    return found


def unsuited(model: Any) -> str | None:
    """Say why the attention of a model, which may be on the meta device, cannot be given groups, or None."""
    if model._can_set_attn_implementation() and model.config.get_text_config() is model.config:
        return None
    return f"the attention of {type(model).__name__} cannot be replaced"


def attend_in_groups_(model: Any, group: int) -> Callable[[], None]:
    """Set the attention of this model instance; return what sets it back.

    Raises TunekitError for a model whose attention cannot be set, or that reads more than text.
    """
    if (obstacle := unsuited(model)) is not None:
        raise TunekitError(f"use.s2attn: {obstacle}", "leave s2attn out")
    before, name = model.config._attn_implementation, f"tunekit_s2attn_{group}"
    register(name, ShiftedSparse(group))
    model.set_attn_implementation(name)
    return lambda: model.set_attn_implementation(before)


def _real(query: Tensor, mask: Tensor | None) -> Tensor:
    """Which places of each row hold a token, bool[batch seq]: those that see themselves.

    `mask` is SDPA's, [batch, 1, seq, seq].
    """
    batch, _, length, _ = query.shape
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=query.device)
    if mask.dtype != torch.bool:
        raise RuntimeError("groups need a mask that says what is padding, and this one is added to scores")
    return mask.diagonal(dim1=-2, dim2=-1)[:, 0].expand(batch, length)


def _refuse_restarting(positions: Tensor | None, real: Tensor) -> None:
    """Raise where several sequences lie in one row and only a mask keeps them apart: groups would go across."""
    if positions is None or positions.shape[-1] != real.shape[-1]:
        return
    follows = real[:, 1:] & real[:, :-1]
    if bool((follows & (positions.diff(dim=-1) != 1)).any()):
        raise RuntimeError("positions restart inside a row, and nothing says where sequences end; give cu_seq_lens_q")
