"""What config.json tells of AQLM's codes, what they weigh, and names that transformers no longer understands."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tunekit.values import BYTES, Estimate
from tunekit_transformers.quantizing import linear_layers, stored_estimate

Stored = Mapping[str, Any]
KEPT = "linear_weights_not_to_quantize"


def kept_layers(stored: Stored) -> list[str]:
    """The layers that AQLM left as they were. Older checkpoints name their weights, which match no layer any more."""
    return [name.removesuffix(".weight") for name in stored.get(KEPT) or ()]


def name_layers_(config: Any) -> None:
    """Have a model's config name the layers that AQLM left, where it names their weights, in place."""
    config.quantization_config = {**config.quantization_config, KEPT: kept_layers(config.quantization_config)}


def estimate_weights(stored: Stored, dtype: str, estimate: Estimate) -> Estimate:
    """Put the linear layers of the skeleton in as they are stored."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = kept_layers(stored)
    layers = {n: layer for n, layer in linear_layers(estimate.skeleton).items() if should_convert_module(n, kept)}
    return stored_estimate(estimate, layers, dtype, partial(stored_bytes, stored, dtype))


def stored_bytes(stored: Stored, dtype: str, rows: int, columns: int) -> int:
    """Bytes of one weight: a code in 1, 2 or 4 bytes for each group and codebook, the codebooks, a scale for each row.

    A group is `out_group_size` rows by `in_group_size` columns.
    """
    size, books, bits = _group(stored), stored["num_codebooks"], stored["nbits_per_codebook"]
    codes = rows * columns // size * books * _code_bytes(bits)
    weights: int = codes + (books * 2**bits * size + rows // stored["out_group_size"]) * BYTES[dtype]
    return weights


def stored_bits(stored: Stored) -> float:
    """Bits per weight that the codes take; codebooks and scales come to it, by the size of a layer."""
    bits = stored["nbits_per_codebook"]
    return float(stored["num_codebooks"] * 8 * _code_bytes(bits) / _group(stored))


def _group(stored: Stored) -> int:
    size: int = stored["in_group_size"] * stored["out_group_size"]
    return size


def _code_bytes(bits: int) -> int:
    return next(width for width in (1, 2, 4, 8) if bits <= 8 * width)
