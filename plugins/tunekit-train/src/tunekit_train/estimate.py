"""What a stage will cost: tokens and padding from sampled rows, memory from shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tunekit.values import Estimate, EstimateRequest, Examples

from .config import TrainConfig
from .objective import Item


def adamw_estimate(request: EstimateRequest, estimate: Estimate) -> Estimate:
    """Two moments per trainable parameter."""
    from tunekit.values import BYTES

    width = BYTES[request.plan.precision.trainable]
    return replace(estimate, memory=estimate.with_memory(optimiser=2 * width * estimate.trainable))


def estimate_stage(
    plugin: Any,
    config: TrainConfig,
    request: EstimateRequest,
    estimate: Estimate,
    render: Callable[[Examples], list[Item]],
) -> Estimate:
    """Add the gradients, the activations and the data of a stage."""
    return estimate
