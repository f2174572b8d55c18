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


def segments_mask(*arguments: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """Make no mask where borders are given and no 2-D mask is; else the ordinary SDPA mask.

    Padded generation on the same model stays right, and so do a plain call and one with restarting positions, for which
    transformers' own block-diagonal mask is made.
    """
    if attention_mask is None and _borders_given.get():
        return None
    mask: Tensor | None = sdpa_mask(*arguments, attention_mask=attention_mask, **options)
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
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend inside each segment: `query` [1, heads, seq, head_dim], borders in `cu_seq_lens_q` [segments + 1].

    The keyword names are those of flash attention, so CUDA's variable-length kernels take the same batch. With a mask
    it is SDPA. Returns [1, seq, heads, head_dim] and no attention weights.
    """
    if attention_mask is not None or cu_seq_lens_q is None:
        if attention_mask is None and _borders_given.get():
            raise RuntimeError(f"{type(module).__name__} does not hand on where sequences end; set batch.padding: always")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise RuntimeError(f"{type(module).__name__} caps its scores or has sinks; set batch.padding: always")
    lengths = cu_seq_lens_q.diff().tolist()
    grouped = key.shape[1] != query.shape[1]
    parts = [tensor.split(lengths, dim=2) for tensor in (query, key, value)]  # split, not slices: backward is one cat
    out = [
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=mask is None, enable_gqa=grouped
        ).transpose(1, 2)
        for q, k, v in zip(*parts, strict=True)
        for mask in (_window(q.shape[2], sliding_window, q.device),)
    ]
    return torch.cat(out, dim=1), None


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
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
