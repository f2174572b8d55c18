"""Linear layers swapped for hqq's, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunekit.errors import PlanError
from tunekit_transformers.quantizing import layers_to_quantize, shape_of

from . import HqqConfig
from .sizes import SKIP, uneven


def quantized(config: HqqConfig, model: Any, dtype: str, kept: Iterable[str] = ()) -> Any:
    """Put hqq's layers in the place of the linear ones but the head and the `kept`, in place; return the model."""
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear  # type: ignore[import-not-found, import-untyped]

    from tunekit_transformers.frozen_product import as_linear

    settings = BaseQuantizeConfig(nbits=config.bits, group_size=config.group, axis=config.axis)
    for name, layer in layers_to_quantize(model, config.skip, SKIP, kept).items():
        if problem := uneven(config, name, *shape_of(layer)):
            raise PlanError([problem])
        plain = as_linear(layer)
        swapped = HQQLinear(plain, settings, compute_dtype=getattr(torch, dtype), device=str(plain.weight.device))
        swapped.was_turned = plain is not layer
        model.set_submodule(name, swapped.requires_grad_(False).train(layer.training))
    return model


def dense(model: Any, dtype: str) -> Any:
    """Put layers as they were, of the same weights in `dtype`, in the place of hqq's; return the model."""
    import torch
    from hqq.core.quantize import HQQLinear  # type: ignore[import-untyped,unused-ignore]

    from tunekit_transformers.frozen_product import as_conv1d, dense_linear

    for name, layer in list(model.named_modules()):
        if isinstance(layer, HQQLinear):
            new = dense_linear(layer.dequantize().to(getattr(torch, dtype)), layer.bias)
            model.set_submodule(name, (as_conv1d(new) if layer.was_turned else new).train(layer.training))
    return model
