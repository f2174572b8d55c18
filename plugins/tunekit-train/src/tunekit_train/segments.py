"""Attention inside each of several sequences laid end to end, and the models for which it is known to be exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "tunekit_segments"

FAMILIES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt2", "phi3", "smollm3", "olmo2", "granite"}
)
"""Model types whose loss and gradients the tests have shown to equal the padded computation. All others are padded."""

_borders_given: ContextVar[bool] = ContextVar("borders_given", default=False)


@contextmanager
def borders_given() -> Iterator[None]:
    """Say that the model calls inside come with `cu_seq_lens_q`, so that no mask needs to be made for them."""
    token = _borders_given.set(True)
    try:
        yield
    finally:
        _borders_given.reset(token)


def segments_mask(attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """Make no mask where borders are given and no 2-D mask is; else the ordinary SDPA mask.

    So padded generation on the same model stays right, and so does any plain call.
    """
    if attention_mask is None and _borders_given.get():
        return None
    mask: Tensor | None = sdpa_mask(attention_mask=attention_mask, **options)
    return mask


def segments_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    position_ids: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend inside each segment: `query` [1, heads, seq, head_dim], borders in `cu_seq_lens_q` [segments + 1].

    The keyword names are those of flash attention, so CUDA's variable-length kernels take the same batch. With a mask
    it is SDPA. Returns [1, seq, heads, head_dim] and no attention weights.
    """
    if attention_mask is not None or cu_seq_lens_q is None:
        if attention_mask is None and _borders_given.get():
            name = type(module).__name__
            raise RuntimeError(f"{name} does not hand on where sequences end; set batch.padding: always")
        _refuse_crossing(attention_mask, position_ids, key.shape[2])
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise RuntimeError(f"{type(module).__name__} caps its scores or has sinks; set batch.padding: always")
    lengths = cu_seq_lens_q.diff().tolist()
    if query.device.type != "cpu":
        return _attend((query, key, value), lengths, sliding_window, dropout, scaling), None
    # The CPU's fused kernel is up to three times as fast in fp32 as in half precision, casts included.
    with torch.autocast("cpu", enabled=False):
        parts = (query.float(), key.float(), value.float())
        return _attend(parts, lengths, sliding_window, dropout, scaling).to(query.dtype), None


def _refuse_crossing(mask: Tensor | None, position_ids: Tensor | None, keys: int) -> None:
    """Raise where positions restart and a token may still look across.

    Transformers makes its block-diagonal mask from restarting positions only for calls without a cache; with one, the
    sequences would be mixed silently. Behind padding positions restart too, but there the mask hides what is before.
    """
    if position_ids is None or position_ids.shape[-1] != keys:
        return
    restarts = position_ids.diff(dim=-1) != 1  # [batch, seq - 1]
    if mask is not None:
        before = mask.diagonal(offset=-1, dim1=-2, dim2=-1)[:, 0]  # [batch, seq - 1]: may a token see the one before it
        restarts = restarts & (before if before.dtype == torch.bool else before == 0)
    if bool(restarts.any()):
        raise RuntimeError(
            "positions restart, but nothing says where sequences end; give cu_seq_lens_q, or a row for each sequence"
        )


def _attend(
    parts: tuple[Tensor, Tensor, Tensor], lengths: list[int], window: int | None, dropout: float, scaling: float | None
) -> Tensor:
    """Causal attention in each segment of `parts`, query, key and value; returns [1, seq, heads, head_dim]."""
    grouped = parts[0].shape[1] != parts[1].shape[1]
    split = [torch.split(tensor, lengths, dim=2) for tensor in parts]  # split, not slices: its backward is a single cat
    out = []
    for query, key, value in zip(*split, strict=True):
        mask = _band(query.shape[2], window, query.device)
        out.append(
            torch.nn.functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=mask is None,
                enable_gqa=grouped,
            ).transpose(1, 2)
        )
    return torch.cat(out, dim=1)


def _band(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """The causal band [length, length] of a sliding window, or None where plain causal attention is the same."""
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)


AttentionInterface.register(NAME, segments_attention)
AttentionMaskInterface.register(NAME, segments_mask)


@contextmanager
def switched(model: Any, implementation: str) -> Iterator[None]:
    """Use another attention implementation on this model instance, and set its own back afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
