"""What compressed weights weigh, from what config.json tells of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from tunekit.values import BYTES, Estimate
from tunekit_transformers.quantizing import stored_estimate

from .checks import Stored, groups

SHAPE_BYTES = 16
"""Packed weights keep their shape beside them, as two 64-bit integers."""


def estimate_weights(stored: Stored, dtype: str, estimate: Estimate) -> Estimate:
    """Put the layers of each group in as they are stored."""
    import torch
    from compressed_tensors.utils import match_named_modules  # type: ignore[import-untyped,unused-ignore]

    for group in groups(stored):
        matched = match_named_modules(estimate.skeleton, group["targets"], stored.get("ignore"))
        layers = {name: layer for name, layer in matched if isinstance(layer, torch.nn.Linear)}
        estimate = stored_estimate(estimate, layers, dtype, partial(stored_bytes, group["weights"], dtype))
    return estimate


def stored_bytes(weights: Mapping[str, Any], dtype: str, rows: int, columns: int) -> int:
    """Bytes of one weight with its scales and zero points."""
    bits, packed = weights["num_bits"], weights["type"] == "int" and weights["num_bits"] < 8
    scales = {"tensor": 1, "channel": rows}.get(weights["strategy"])
    if scales is None:
        scales = rows * math.ceil(columns / (weights.get("group_size") or columns))
    size = rows * math.ceil(columns * bits / 32) * 4 + SHAPE_BYTES if packed else rows * columns
    zero_points = 0 if weights.get("symmetric", True) else math.ceil(scales * (bits if packed else 8) / 8)
    return size + scales * BYTES[dtype] + zero_points


def stored_bits(stored: Stored, dtype: str) -> float:
    """Bits per weight of the first group, with the scales of its groups of columns."""
    weights = groups(stored)[0]["weights"]
    size = weights.get("group_size") or 0
    return float(weights["num_bits"]) + (8 * BYTES[dtype] / size if size > 0 else 0.0)
