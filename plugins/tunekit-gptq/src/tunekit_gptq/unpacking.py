"""Integers packed into 32-bit words, and the weights that they stand for.

Both methods store a weight [in out] in groups of rows: w = scale (q - zero), with q and zero of a few bits each, and
one scale and one zero for each group and column. GPTQ packs q along its rows, AWQ along its columns and in an order of
its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

WORD = 32
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word AWQ keeps each of 8 neighbouring columns, counted in 4 bits from the lowest."""


def unpack(words: Tensor, bits: int) -> Tensor:
    """The integers in the last axis: int32 [..., n] to uint8 [..., n * 32 / bits].

    They lie end to end from the lowest bit of the first word on; with 3 bits some lie across two words.
    """
    if WORD % bits:
        return _across_words(words, bits)
    parts = words.contiguous().view(torch.uint8)
    if bits == 8:
        return parts
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=words.device)
    found: Tensor = ((parts.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)
    return found


def _across_words(words: Tensor, bits: int) -> Tensor:
    """So many words hold 32 integers."""
    wide = words.long().bitwise_and(0xFFFFFFFF).reshape(*words.shape[:-1], -1, bits)
    following = torch.cat([wide[..., 1:], torch.zeros_like(wide[..., :1])], dim=-1)
    starts = torch.arange(WORD, device=words.device) * bits
    first, shift = starts // WORD, starts % WORD
    pairs = wide[..., first] | (following[..., first] << WORD)
    found: Tensor = ((pairs >> shift) & (2**bits - 1)).to(torch.uint8).flatten(-2)
    return found


def gptq_weight(layer: Any) -> Tensor:
    """The weight of a GPTQ layer, [in out] in the dtype of its scales.

    `qweight` int32 [in * bits / 32, out], `qzeros` int32 [groups, out * bits / 32] with the zeros themselves (layout
    v2, which layers are brought to when they are loaded), `scales` [groups, out], `g_idx` int32 [in]: the group of each
    row.
    """
    integers = unpack(layer.qweight.t(), layer.bits).t()
    zeros = unpack(layer.qzeros, layer.bits)[:, : layer.out_features]
    groups = layer.g_idx.long()
    return _scaled(integers[: len(groups)], zeros[groups], layer.scales[groups])


def awq_weight(layer: Any) -> Tensor:
    """The weight of an AWQ layer in the layout GEMM, [in out] in the dtype of its scales.

    `qweight` int32 [in, out / 8], `qzeros` int32 [groups, out / 8], `scales` [groups, out].
    """
    integers, zeros = _columns(unpack(layer.qweight, 4)), _columns(unpack(layer.qzeros, 4))
    groups = torch.arange(len(integers), device=integers.device) // (len(integers) // len(zeros))
    return _scaled(integers, zeros[groups], layer.scales[groups])


def _columns(packed: Tensor) -> Tensor:
    """Bring the columns of each word into their order."""
    words = packed.reshape(len(packed), -1, len(AWQ_ORDER))
    return words[..., list(AWQ_ORDER)].flatten(-2)


def _scaled(integers: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    return (integers.to(torch.int16) - zeros.to(torch.int16)).to(scales.dtype) * scales
