"""Attention inside each of several segments by one call of a variable-length kernel, where the device has one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WIDEST_HEAD, HEAD_MULTIPLE = 256, 8
"""The largest head_dim of the kernel, and what it must be a multiple of."""


def obstacle(query: Tensor, dropout: float, explicit: bool) -> str | None:
    """Say why these queries cannot go through the kernel, or None where they can.

    `query` is [1, heads, seq, head_dim]. `explicit`: the scores have to be written out, for soft caps or sinks.
    """
    if query.device.type != "cuda":
        return f"the kernel is CUDA's, and this is a {query.device.type}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"the kernel computes in half precision, and this is {query.dtype}"
    if explicit:
        return "the kernel knows neither soft caps nor sinks"
    if dropout:
        return "the kernel has no dropout"
    if query.shape[-1] > WIDEST_HEAD or query.shape[-1] % HEAD_MULTIPLE:
        return (
            f"the kernel's heads are multiples of {HEAD_MULTIPLE} up to {WIDEST_HEAD}, and these are {query.shape[-1]}"
        )
    return None if _kernel() is not None else "this torch has no torch.nn.attention.varlen; 2.10 brings it"


def attend(
    parts: tuple[Tensor, Tensor, Tensor],
    lengths: list[int],
    key_lengths: list[int],
    window: int | None,
    scaling: float | None,
) -> Tensor:
    """Causal attention in each segment of query, key and value, [1, heads, seq, head_dim] each.

    Returns [1, seq, heads, head_dim]. Lengths are as in `segments_attention`. The kernel wants the keys of every
    segment in one piece, so those of a prompt that several share are laid out once for each of them. Its diagonal ends
    at the last query and the last key of each segment, as flash attention's does.
    """
    kernel = _kernel()
    assert kernel is not None, "obstacle() was asked before"
    query, key, value = (part[0].transpose(0, 1) for part in parts)  # [seq, heads, head_dim]
    if lengths != key_lengths:
        laid_out = keys_at(lengths, key_lengths).to(key.device)
        key, value = key[laid_out], value[laid_out]
    borders = [_borders(each, query.device) for each in (lengths, key_lengths)]
    out: Tensor = kernel(
        query,
        key,
        value,
        *borders,
        max(lengths),
        max(key_lengths),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None]


def keys_at(lengths: list[int], key_lengths: list[int]) -> Tensor:
    """Where the keys of each segment stand, one segment after the other, [sum of key_lengths].

    A segment with more keys than tokens continues the last one before it that has as many of both.
    """
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    found, alone = [], 0
    for at, (own, seen) in enumerate(zip(lengths, key_lengths, strict=True)):
        if own == seen:
            alone = at
        else:
            assert lengths[alone] + own == seen, "a segment continues the last one that stands alone"
            found.append(torch.arange(starts[alone], starts[alone] + lengths[alone]))
        found.append(torch.arange(starts[at], starts[at] + own))
    return torch.cat(found)


def _borders(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def _kernel() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn
