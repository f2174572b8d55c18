"""Which weights are projected, the optimiser over them, and what its state takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunekit.values import BYTES, Estimate, OptimizerSettings
from tunekit_train.estimate import states_estimate
from tunekit_train.linear_weights import choose_linear_weights

from . import GaloreConfig
from .optimizer import GaloreAdamW, projected_side


def make_optimizer(
    config: GaloreConfig, model: Any, named: Iterable[tuple[str, Any]], settings: OptimizerSettings
) -> GaloreAdamW:
    """Group the parameters into projected matrices, other matrices, and vectors without weight decay."""
    chosen = {id(weight) for weight in choose_weights(model, config).values()}
    parameters = [parameter for _, parameter in named]
    projected = [parameter for parameter in parameters if id(parameter) in chosen]
    matrices = [parameter for parameter in parameters if id(parameter) not in chosen and parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    fields = ("rank", "update_interval", "scale", "projection")
    groups = [
        {"params": projected, **{field: getattr(config, field) for field in fields}},
        {"params": matrices},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return GaloreAdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=settings.weight_decay,
    )


def estimate_states(config: GaloreConfig, dtype: str, estimate: Estimate) -> Estimate:
    """Add moments and bases of all that trains in the skeleton, at `dtype`."""
    chosen = {id(weight) for weight in choose_weights(estimate.skeleton, config).values()}

    def bytes_of(parameter: Any) -> int:
        shape: tuple[int, ...] = tuple(parameter.shape)
        return BYTES[dtype] * (state_numbers(config, shape) if id(parameter) in chosen else 2 * parameter.numel())

    return states_estimate(estimate, bytes_of)


def state_numbers(config: GaloreConfig, shape: tuple[int, ...]) -> int:
    """Count the numbers kept for a projected matrix [out in]: two moments in the subspace, and its basis."""
    shrunk, kept = shape if projected_side(shape, config.projection) == "left" else shape[::-1]
    return config.rank * (2 * kept + shrunk)


def choose_weights(model: Any, config: GaloreConfig) -> dict[str, Any]:
    """Find the weights that are projected, under the names of their layers; PlanError for what does not fit."""
    return choose_linear_weights(model, config.targets, "use.galore", config.rank)
