"""Attention inside each of several sequences laid end to end, and the models for which it is known to be exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from . import varlen

NAME = "tunekit_segments"

FAMILIES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_oss", "phi3", "smollm3"}
    | {"olmo2", "granite", "mixtral", "qwen2_moe", "qwen3_moe"}
)
"""Model types whose loss and gradients the tests have shown to equal the padded computation. All others are padded."""

WINDOW_UNTOLD = frozenset({"qwen2_moe"})
"""Model types that put a sliding window into their mask alone: without one, as here, the attention would be whole."""

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
    cu_seq_lens_k: Tensor | None = None,
    position_ids: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    written_out: bool = False,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend inside each segment: `query` [1, heads, seq, head_dim], borders in `cu_seq_lens_q` [segments + 1].

    A segment with more keys in `cu_seq_lens_k` than tokens continues the last segment before it that has as many of
    both: it attends to that one and to itself. The keyword names and their meaning are those of flash attention, whose
    variable-length kernels take the same borders over keys that are laid out so. With a mask it is SDPA. `written_out`:
    no fused kernel is used. Returns [1, seq, heads, head_dim] and no attention weights.
    """
    kernel = _Kernel(sliding_window, dropout, scaling, softcap, s_aux, written_out)
    if attention_mask is not None or cu_seq_lens_q is None:
        if attention_mask is None and _borders_given.get():
            name = type(module).__name__
            raise RuntimeError(f"{name} does not hand on where sequences end; set batch.padding: always")
        _refuse_crossing(attention_mask, position_ids, key.shape[2])
        if kernel.explicit:
            mask = _everything(module, query, key, options) if attention_mask is None else attention_mask
            return kernel(query, key, value, mask).transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    lengths = cu_seq_lens_q.diff().tolist()
    key_lengths = lengths if cu_seq_lens_k is None else cu_seq_lens_k.diff().tolist()
    if varlen.obstacle(query, dropout, kernel.explicit) is None:
        return varlen.attend((query, key, value), lengths, key_lengths, sliding_window, scaling), None
    if query.device.type != "cpu":
        return _attend((query, key, value), lengths, key_lengths, kernel), None
    # The CPU's fused kernel is up to three times as fast in fp32 as in half precision, casts included.
    with torch.autocast("cpu", enabled=False):
        wide = torch.promote_types(query.dtype, torch.float32)
        parts = (query.to(wide), key.to(wide), value.to(wide))
        return _attend(parts, lengths, key_lengths, kernel).to(query.dtype), None


def _everything(module: Any, query: Tensor, key: Tensor, options: Mapping[str, Any]) -> Tensor | None:
    """A mask that hides nothing, where a module without one is not causal, as in a tower that sees; else None."""
    said = options.get("is_causal")
    if getattr(module, "is_causal", True) if said is None else said:
        return None
    return torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)


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


@dataclass(frozen=True)
class _Kernel:
    """Causal attention of one kind of layer, for segments of any length.

    `softcap` bounds the scores, cap * tanh(scores / cap); `sinks` [heads] are scores that take their share of the
    softmax and add nothing. The fused kernels know neither.
    """

    window: int | None
    dropout: float
    scaling: float | None
    softcap: float | None
    sinks: Tensor | None
    written_out: bool = False

    @property
    def explicit(self) -> bool:
        """Whether the scores are written out: asked for, or for what no fused kernel knows."""
        return self.written_out or self.softcap is not None or self.sinks is not None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from the last tokens of the keys; `mask` (bool, or added) instead of the causal band.

        Query [batch, heads, seq, head_dim], keys and values [batch, key heads, keys, head_dim]; returns as query.
        """
        band = _band(query.shape[2], key.shape[2], self.window, query.device) if mask is None else mask
        if self.explicit:
            return self._written_out(query, key, value, band)
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=band,
            dropout_p=self.dropout,
            scale=self.scaling,
            is_causal=band is None,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _written_out(self, query: Tensor, key: Tensor, value: Tensor, band: Tensor | None) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if self.scaling is None else self.scaling)
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if band is None:
            band = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~band, lowest) if band.dtype == torch.bool else scores + band
        if self.sinks is not None:
            sinks = self.sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, sinks), dim=-1)
        shares = scores.softmax(-1, dtype=torch.float32).to(value.dtype)[..., : key.shape[2]]
        return torch.nn.functional.dropout(shares, self.dropout) @ value


def _attend(
    parts: tuple[Tensor, Tensor, Tensor], lengths: list[int], key_lengths: list[int], kernel: _Kernel
) -> Tensor:
    """Causal attention in each segment of `parts`, query, key and value; returns [1, seq, heads, head_dim]."""
    # Split, not slices: its backward is a single cat.
    queries, keys, values = (torch.split(tensor, lengths, dim=2) for tensor in parts)
    out, alone = [], 0
    for at, (own, seen) in enumerate(zip(lengths, key_lengths, strict=True)):
        key, value = keys[at], values[at]
        if own == seen:
            alone = at
        else:
            assert lengths[alone] + own == seen, "a segment continues the last one that stands alone"
            key, value = torch.cat((keys[alone], key), dim=2), torch.cat((values[alone], value), dim=2)
        out.append(kernel(queries[at], key, value).transpose(1, 2))
    return torch.cat(out, dim=1)


def _band(length: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys each of the last tokens sees, [length, keys], or None where plain causal attention is the same."""
    before = keys - length
    if not before and (window is None or length <= window):
        return None
    ones = torch.ones(length, keys, dtype=torch.bool, device=device)
    return ones.tril(before) if window is None else ones.tril(before) & ones.triu(before + 1 - window)


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
