"""Which weights are sketched, the optimiser over them, and what its state takes."""

from __future__ import annotations

from typing import Any

from tunekit.values import BYTES, Estimate, OptimizerSettings
from tunekit_train.estimate import states_estimate
from tunekit_train.linear_weights import choose_linear_weights

from . import ApolloConfig
from .optimizer import ApolloAdamW

FIELDS = ("rank", "update_interval", "scale", "granularity", "growth_limit")


def make_optimizer(
    config: ApolloConfig, model: Any, named: list[tuple[str, Any]], settings: OptimizerSettings, seed: int
) -> ApolloAdamW:
    """Group the parameters into sketched matrices, other matrices, and vectors without weight decay."""
    chosen = {id(weight) for weight in choose_weights(model, config).values()}
    sketched = [parameter for _, parameter in named if id(parameter) in chosen]
    others = [parameter for _, parameter in named if id(parameter) not in chosen]
    groups = [
        {"params": sketched, **{field: getattr(config, field) for field in FIELDS}},
        {"params": [parameter for parameter in others if parameter.ndim >= 2]},
        {"params": [parameter for parameter in others if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return ApolloAdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=settings.weight_decay,
        seeds={parameter: f"{seed} {name}" for name, parameter in named},
    )


def estimate_states(config: ApolloConfig, dtype: str, estimate: Estimate) -> Estimate:
    """Add the moments of all that trains in the skeleton, at `dtype`."""
    chosen = {id(weight) for weight in choose_weights(estimate.skeleton, config).values()}

    def bytes_of(parameter: Any) -> int:
        if id(parameter) not in chosen:
            return BYTES[dtype] * 2 * int(parameter.numel())
        norm = 0 if config.growth_limit is None else 1
        return BYTES[dtype] * (2 * config.rank * int(max(parameter.shape)) + norm)

    return states_estimate(estimate, bytes_of)


def choose_weights(model: Any, config: ApolloConfig) -> dict[str, Any]:
    """Find the weights that are sketched, under the names of their layers; PlanError for what does not fit."""
    return choose_linear_weights(model, config.targets, "use.apollo", config.rank)
