"""Which weights are projected, the optimiser over them, and what its state takes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from tunekit.errors import PlanError, Problem, nearest
from tunekit.values import BYTES, Estimate, OptimizerSettings

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
    assert estimate.skeleton is not None, "the loader's estimate comes before the optimiser's"
    chosen = {id(weight) for weight in choose_weights(estimate.skeleton, config).values()}
    numbers = sum(
        state_numbers(config, tuple(parameter.shape)) if id(parameter) in chosen else 2 * parameter.numel()
        for parameter in estimate.skeleton.parameters()
        if parameter.requires_grad
    )
    return replace(estimate, memory=estimate.with_memory(optimiser=numbers * BYTES[dtype]))


def state_numbers(config: GaloreConfig, shape: tuple[int, ...]) -> int:
    """Count the numbers kept for a projected matrix [out in]: two moments in the subspace, and its basis."""
    shrunk, kept = shape if projected_side(shape, config.projection) == "left" else shape[::-1]
    return config.rank * (2 * kept + shrunk)


def choose_weights(model: Any, config: GaloreConfig) -> dict[str, Any]:
    """Find the weights that `config.targets` means, under the names of their layers.

    PlanError naming targets that match no linear layer, and a rank above the smaller side of a weight.
    """
    linear = {name: layer.weight for name, layer in model.named_modules() if _is_linear(layer)}
    head = model.get_output_embeddings()
    problems: list[Problem] = []
    if config.targets == "all-linear":
        chosen = {name: weight for name, weight in linear.items() if head is None or weight is not head.weight}
    elif isinstance(config.targets, str):
        chosen = {name: weight for name, weight in linear.items() if re.fullmatch(config.targets, name)}
        problems += [] if chosen else [_unknown(config.targets, "no linear layer's whole name matches", linear)]
    else:
        chosen = {name: w for name, w in linear.items() if any(_holds(name, target) for target in config.targets)}
        unmatched = [target for target in config.targets if not any(_holds(name, target) for name in linear)]
        problems += [_unknown(target, "no linear layer's name holds", linear) for target in unmatched]
    problems += _too_narrow(config.rank, chosen)
    if problems:
        raise PlanError(problems)
    return chosen


def _is_linear(layer: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, nn.Linear | Conv1D)


def _holds(name: str, target: str) -> bool:
    """Whether `target` is some of the dotted parts of a name, in a row."""
    return f".{target}." in f".{name}."


def _unknown(target: str, what: str, linear: Iterable[str]) -> Problem:
    parts = sorted({part for name in linear for part in name.split(".") if not part.isdigit()})
    close = nearest(target, parts)
    if target in parts:
        remedy = f"write [{target}] to name layers"
    else:
        remedy = f"did you mean {close!r}?" if close else f"the model has {', '.join(parts)}"
    return Problem("use.galore.targets", f"{what} {target!r}", remedy)


def _too_narrow(rank: int, weights: dict[str, Any]) -> list[Problem]:
    narrow = {name: weight.shape for name, weight in weights.items() if min(weight.shape) < rank}
    if not narrow:
        return []
    name, shape = min(narrow.items(), key=lambda item: min(item[1]))
    message = f"use.galore.rank is {rank}, but {name} is {shape[0]} x {shape[1]}"
    return [Problem("", message, f"choose {min(shape)} or less")]
