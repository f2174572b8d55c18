"""Linear layers swapped for torchao's that multiply in float8, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from tunekit.errors import PlanError, Problem
from tunekit.values import Machine, Plan, Report
from tunekit_transformers.quantizing import layers_to_quantize, refuse_transposed

from .checks import FLOAT8
from .fp8 import Fp8Config

HOPPER = (9, 0)
"""The least compute capability whose products take a scale for each row."""
MULTIPLE = 16
"""What the sides of a matrix have to be multiples of."""


def problems(config: Fp8Config, plan: Plan, machine: Machine) -> Iterator[Problem]:
    """Refuse a device without products in float8, and rows that are not added up in bf16."""
    if config.emulate or plan.purpose == "open":
        return
    emulated = "or `emulate: true`, which rounds alike and multiplies in a wider dtype"
    least = _least(config)
    known = [one.capability for one in machine.accelerators if one.capability is not None]
    if plan.precision.device != "cuda" or not known or not all(capability >= least for capability in known):
        needed = ".".join(map(str, least))
        what = f"multiplies in float8, for which {config.recipe} needs an NVIDIA card of compute capability {needed}"
        yield Problem("use.fp8", what, f"leave it out, {emulated}")
    elif plan.precision.compute != "bfloat16":
        what = f"adds products in float8 up in bf16, and this run computes in {plan.precision.compute}"
        yield Problem("use.fp8", what, f"set use.precision.compute to bf16, {emulated}")


def layers_to_convert(config: Fp8Config, model: Any) -> tuple[list[str], list[str]]:
    """The linear layers but the head that are converted, and those whose sides are no multiples of 16.

    PlanError for a name to skip that no layer has, and where nothing is left.
    """
    layers = layers_to_quantize(model, config.skip, "use.fp8.skip")
    refuse_transposed(layers, "use.fp8", "name it in skip, or leave fp8 out", "multiply in float8 by")
    odd = [name for name, layer in layers.items() if any(side % MULTIPLE for side in layer.weight.shape)]
    fit = [name for name in layers if name not in odd]
    if not fit:
        what = f"no linear layer of {type(model).__name__} has sides that are multiples of 16, as float8 needs"
        raise PlanError([Problem("use.fp8", what, "leave it out")])
    return fit, odd


def convert_(config: Fp8Config, model: Any) -> Report:
    """Swap the layers, in place; their weights stay the same parameters.

    A run that is opened where nothing multiplies in float8 answers by ordinary products.
    """
    if not (config.emulate or _multiplies(config, next(model.parameters()).device)):
        return Report("ordinary products: nothing here multiplies in float8", {"layers": 0})
    from torchao.float8 import (  # type: ignore[import-untyped,unused-ignore]
        Float8LinearConfig,
        convert_to_float8_training,
    )

    layers, _ = layers_to_convert(config, model)
    made: Any = Float8LinearConfig.from_recipe_name(config.recipe)
    # Sequences laid end to end have any number of tokens, over which gradients of weights are summed.
    settings = replace(made, emulate=config.emulate, pad_inner_dim=True)
    convert_to_float8_training(model, config=settings, module_filter_fn=lambda _, name: name in layers)
    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(_as_autocast_says)
    how = "rounded to float8 and multiplied in a wider dtype" if config.emulate else "multiplied in float8"
    details = {"layers": len(layers), "recipe": config.recipe, "emulate": config.emulate}
    return Report(f"{len(layers)} linear layers: {how}", details, partial(undo_, model, layers))


def _multiplies(config: Fp8Config, device: Any) -> bool:
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _least(config)


def _least(config: Fp8Config) -> tuple[int, int]:
    return FLOAT8 if config.recipe == "tensorwise" else HOPPER


def _as_autocast_says(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """torchao's layer asks for CUDA's autocast alone: what goes in is cast as an ordinary layer does on any device."""
    import torch

    (given,) = inputs
    kind = given.device.type
    return (given.to(torch.get_autocast_dtype(kind)),) if torch.is_autocast_enabled(kind) else inputs


def undo_(model: Any, layers: list[str]) -> None:
    """Put ordinary layers back, of the very parameters."""
    import torch

    for name in layers:
        layer = model.get_submodule(name)
        with torch.device("meta"):
            new = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        new.weight, new.bias = layer.weight, layer.bias
        model.set_submodule(name, new.train(layer.training))
