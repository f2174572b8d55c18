"""Letting some weights train and freezing the rest, saving and loading those that train, and counting them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit.values import BYTES, DType, Estimate, EstimateRequest

FILE = "trained_weights.safetensors"
"""The trained weights, under their names in the model."""


def train_only_(model: Any, names: Iterable[str], dtype: DType) -> None:
    """Freeze all parameters but these, which are stored in `dtype`; frozen ones stay as they were loaded."""
    train = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in train)
        if name in train:
            parameter.data = parameter.data.to(getattr(torch, dtype))


def save_weights(model: Any, folder: Path, names: Iterable[str]) -> None:
    """Write the weights of these names into a folder, with the numbers they have."""
    folder.mkdir(parents=True, exist_ok=True)
    own = dict(model.named_parameters())
    save_file({name: own[name].detach().cpu().contiguous() for name in names}, folder / FILE, metadata={"format": "pt"})


def load_weights_(model: Any, names: Iterable[str], folder: Path) -> None:
    """Put the weights of a folder in the place of the model's own.

    Raises TunekitError where the folder holds others than these names.
    """
    wrong = _other_than(folder, names)
    if wrong is not None:
        raise TunekitError(*wrong)
    saved, own = load_file(folder / FILE), dict(model.named_parameters())
    with torch.no_grad():
        for name, value in saved.items():
            own[name].copy_(value)


def _other_than(folder: Path, names: Iterable[str]) -> tuple[str, str] | None:
    """Why a folder does not hold the weights of these names, and what to do; None where it does. Reads no weights."""
    if not (folder / FILE).is_file():
        return f"{folder} holds no {FILE}", "name the folder that a run with freeze has saved"
    with safe_open(folder / FILE, framework="pt") as file:
        others = sorted(set(file.keys()) ^ set(names))
    if not others:
        return None
    what = f"{folder} was trained with other options of freeze: {others[0]} is in one and not in the other"
    return what, "use the options it was trained with"


def estimate_weights(choose: Callable[[Any], list[str]], request: EstimateRequest, estimate: Estimate) -> Estimate:
    """Freeze the skeleton and count: what trains is stored in the policy's `trainable` dtype, the rest as loaded."""
    skeleton, precision = estimate.skeleton, request.load.precision
    assert skeleton is not None, "the loader's estimate comes before the adapter's"
    names = choose(skeleton)
    if (begun := request.started) is not None and (wrong := _other_than(begun.folder, names)) is not None:
        raise PlanError([Problem(begun.key, *wrong)])
    train_only_(skeleton, names, precision.trainable)
    sizes = {name: parameter.numel() for name, parameter in skeleton.named_parameters()}
    trainable, inserted = sum(sizes[name] for name in names), sum(sizes.values()) - estimate.parameters
    wider = trainable * (BYTES[precision.trainable] - BYTES[precision.weights]) + inserted * BYTES[precision.weights]
    return replace(
        estimate,
        parameters=sum(sizes.values()),
        trainable=trainable,
        memory=estimate.with_memory(weights=estimate.memory.get("weights", 0) + wider),
    )
