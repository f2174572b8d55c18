"""Linear layers that torchao has rounded: what they weigh, how they multiply, and their dense weights."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import BYTES, Estimate, Report
from tunekit_transformers.quantizing import (
    forget_quantization,
    kept_names,
    layers_to_quantize,
    linear_layers,
    refuse_idle_names,
    refuse_transposed,
    refuse_uneven,
    stored_estimate,
)

from . import Rounded, TorchaoConfig

KEY = "use.torchao"
WEIGHT = ".weight"
"""transformers asks by the names of weights here, and of layers for the other libraries."""


def loading_arguments(config: Rounded, dense: Iterable[str] = ()) -> dict[str, Any]:
    """What transformers is given to round while it loads."""
    import transformers

    from .kinds import base_config

    make: Any = transformers.TorchAoConfig
    kept = [end for name in kept_names(config.skip, dense) or () for end in (name, f"{name}{WEIGHT}")] or None
    return {"quantization_config": make(base_config(config.kind, config.columns), modules_to_not_convert=kept)}


def estimate_weights(config: TorchaoConfig, dtype: str, estimate: Estimate, dense: Iterable[str] = ()) -> Estimate:
    """Put the linear layers of the skeleton in as they are stored. PlanError where rows do not divide into groups."""
    layers = layers_to_round(config, estimate.skeleton, KEY, dense)
    return stored_estimate(estimate, layers, dtype, partial(stored_bytes, config, dtype))


def layers_to_round(config: Rounded, model: Any, key: str, dense: Iterable[str] = ()) -> dict[str, Any]:
    """The layers of a model that are rounded. PlanError under `key` for idle names, a `Conv1D`, and uneven groups."""
    layers = layers_to_quantize(model, config.skip, f"{key}.skip", dense)
    refuse_transposed(layers, key)
    refuse_uneven(layers, config.columns, f"{key}.group", "name the layer in skip")
    return layers


def stored_bytes(config: TorchaoConfig, dtype: str, rows: int, columns: int) -> int:
    """Bytes of a rounded weight: one for each value, and for each group a scale and a zero point."""
    groups = rows * columns // (config.columns or columns)
    return rows * columns + groups * _group_bytes(config, dtype)


def stored_bits(config: TorchaoConfig, dtype: str) -> float:
    """Bits per weight, scales included where their share does not depend on the layer."""
    return 8.0 + 8 * _group_bytes(config, dtype) / config.columns if config.columns else 8.0


def _group_bytes(config: TorchaoConfig, dtype: str) -> int:
    scale = BYTES[dtype] if config.kind.startswith("int4") else 4
    return scale + (0 if config.kind.startswith("float8") else 1)


def frugal(config: TorchaoConfig, model: Any) -> Report:
    """Have rounded layers compute without keeping dense weights. TunekitError where the loader rounded nothing."""
    from tunekit_transformers.frozen_product import replace_products_

    from . import DYNAMIC

    refuse_idle_names(config.skip, linear_layers(model), f"{KEY}.skip")
    layers = rounded_layers(model)
    if not layers:
        raise TunekitError("use.torchao: the loaded model has no rounded layer", "name a loader that can quantise")
    details = {"layers": len(layers), "kind": config.kind}
    if config.kind in DYNAMIC:  # nothing trains, and torchao's own kernels round what goes in
        return Report(f"{len(layers)} linear layers in {config.kind}", details)
    put_back = replace_products_(layers.values(), _dense_weight)
    model.is_quantized = False  # transformers lets only kinds of 8 bits be trained over, by the name of their class

    def undo() -> None:
        put_back()
        model.is_quantized = True

    return Report(f"{len(layers)} linear layers in {config.kind}, dense for each product only", details, undo)


def rounded_layers(model: Any) -> dict[str, Any]:
    """The layers whose weight is one of torchao's tensors, by name."""
    from torchao.utils import TorchAOBaseTensor  # type: ignore[import-untyped,unused-ignore]

    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer._parameters.get("weight"), TorchAOBaseTensor)
    }


def dense(model: Any, dtype: str) -> Any:
    """Put ordinary layers of the same weights, in `dtype`, in the place of the rounded ones; return the model."""
    import torch

    from tunekit_transformers.frozen_product import dense_linear

    for name, layer in rounded_layers(model).items():
        new = dense_linear(_dense_weight(layer).to(getattr(torch, dtype)), layer.bias)
        model.set_submodule(name, new.train(layer.training))
    return forget_quantization(model)


def _dense_weight(layer: Any) -> Any:
    return layer.weight.dequantize()
