"""What weights weigh once hqq has packed them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from tunekit.errors import PlanError, Problem
from tunekit.values import BYTES, Estimate, LoadRequest
from tunekit_transformers.quantizing import layers_to_quantize, shape_of, stored_estimate

from . import HqqConfig

SKIP = "use.hqq.skip"
PACKED = {2: 4, 4: 2, 8: 1}
"""Weights in a byte. Those of 3 bits lie ten in four bytes."""


def estimate_weights(config: HqqConfig, request: LoadRequest, estimate: Estimate) -> Estimate:
    """Put the linear layers of the skeleton in as they are stored. PlanError where they do not divide into groups."""
    dtype = request.precision.weights
    layers = layers_to_quantize(estimate.skeleton, config.skip, SKIP, request.dense)
    for name, layer in layers.items():
        if problem := uneven(config, name, *shape_of(layer)):
            raise PlanError([problem])
    before = estimate.memory.get("weights", 0)
    after = stored_estimate(estimate, layers, dtype, partial(stored_bytes, config, dtype))
    saved = (before - after.memory["weights"]) / 2**20
    note = f"hqq packs the weights once they are loaded: for that moment, {saved:.0f} MiB more"
    return replace(after, notes=(*after.notes, note))


def uneven(config: HqqConfig, name: str, rows: int, columns: int) -> Problem | None:
    """Why a layer does not divide into groups, or None."""
    length = columns if config.axis == 1 else rows * columns
    if length % config.group == 0:
        return None
    what = f"is {config.group}, which does not divide {name} of {rows} x {columns}"
    return Problem("use.hqq.group", what, "choose a divisor, or name the layer in skip")


def stored_bytes(config: HqqConfig, dtype: str, rows: int, columns: int) -> int:
    """Bytes of one weight with a scale and a zero point for each group, both in `dtype`."""
    groups = rows * columns // config.group
    scales = 2 * groups * BYTES[dtype]
    if config.bits == 3:  # packed along the group axis, filled up to tens
        length = config.group if config.axis == 0 else groups
        return 4 * math.ceil(length / 10) * (rows * columns // length) + scales
    return rows * columns // PACKED[config.bits] + scales


def stored_bits(config: HqqConfig, dtype: str) -> float:
    """Bits per weight with scales and zero points."""
    return (3.2 if config.bits == 3 else config.bits) + 16 * BYTES[dtype] / config.group
