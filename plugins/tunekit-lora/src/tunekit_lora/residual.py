"""Adapters that start as a part of each weight, over a base that keeps the rest: where they start, and what cannot.

A weight W becomes the residual R = W - s B0 A0 in the base, and an adapter that starts as s B0 A0: together they are W.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from peft.utils.other import transpose
from torch import Tensor

from tunekit.errors import PlanError, Problem

START = "residual_start"
"""The attribute of an adapted layer that holds where it started. No parameter or buffer: no checkpoint holds it."""


class Factors(NamedTuple):
    """A low-rank part of a weight [out in], which is `scaling * up @ down`: down [rank in], up [out rank]."""

    down: Tensor
    up: Tensor


def adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The adapted linear layers with their names."""
    for name, module in model.named_modules():
        if adapter_of(model) in getattr(module, "lora_A", ()):
            yield name, module


def adapter_of(model: Any) -> str:
    """The name PEFT has for the one adapter."""
    name: str = model.active_adapter
    return name


def factors_of(model: Any, layer: Any) -> Factors:
    """The factors of a layer as they are."""
    name = adapter_of(model)
    return Factors(layer.lora_A[name].weight, layer.lora_B[name].weight)


def remember_(model: Any) -> Any:
    """Keep a copy of the factors on each layer."""
    for _, layer in adapted_layers(model):
        start = Factors(*(factor.detach().clone() for factor in factors_of(model, layer)))
        setattr(layer, START, start)
    return model


def begin_(model: Any, layer: Any, start: Factors) -> None:
    """Start the adapter of a layer as these factors, and take their product out of the base. In place."""
    name, base = adapter_of(model), layer.get_base_layer()
    for own, given in zip(factors_of(model, layer), start, strict=True):
        own.data = given.to(own.device, own.dtype).contiguous()
    weight = transpose(base.weight.data, layer.fan_in_fan_out)  # [out in]
    rest = weight - layer.scaling[name] * layer.lora_B[name].weight.data @ layer.lora_A[name].weight.data
    base.weight.data = transpose(rest, layer.fan_in_fan_out).contiguous()


def dense_weight(layer: Any) -> Tensor:
    """The weight [out in] under an adapter, in fp32."""
    return transpose(layer.get_base_layer().weight.data.float(), layer.fan_in_fan_out)


def memory(model: Any) -> int:
    """Bytes of the kept copies."""
    factors = (factor for _, layer in adapted_layers(model) for factor in factors_of(model, layer))
    return sum(factor.numel() * factor.element_size() for factor in factors)


def refuse_odd(model: Any, plugin: str) -> None:
    """Raise PlanError for a target that is no linear layer: PEFT would start it at zero, unasked, or fail."""
    for name, module in model.named_modules():
        found, kind = name.removeprefix("base_model.model."), ""
        if len(getattr(module, "lora_embedding_A", ())):
            kind, where, remedy = "an embedding", "targets", "leave it out, or name it in modules_to_save"
        elif hasattr(module, "parameter_name") and hasattr(module, "lora_A"):
            kind, where, remedy = "a stack of matrices", "parameters", "leave it out, or train plain LoRA"
        if kind:
            what = f"{plugin} decomposes linear layers, and {found} is {kind}"
            raise PlanError([Problem(f"use.lora.{where}", what, remedy)])


def refuse_narrow(model: Any, plugin: str) -> None:
    """Raise PlanError where base or adapter is stored in less than fp32."""
    for name, layer in adapted_layers(model):
        for part in (layer.get_base_layer().weight, *factors_of(model, layer)):
            if part.dtype != torch.float32:
                what = f"{name.removeprefix('base_model.model.')} is stored in {str(part.dtype).removeprefix('torch.')}"
                remedy = "set use.precision.weights: fp32, and leave use.precision.pure out"
                reason = f"{what}, in which what the adapter starts as and the rest do not add up to the weight"
                raise PlanError([Problem(f"use.{plugin}", reason, remedy)])
