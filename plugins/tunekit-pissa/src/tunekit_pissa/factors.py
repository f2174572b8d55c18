"""The low-rank factors of an adapted model: where they started, what they take, and what cannot be decomposed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunekit.errors import PlanError, Problem

START = "pissa_start"
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


def memory(model: Any) -> int:
    """Bytes of the kept copies."""
    factors = (factor for _, layer in adapted_layers(model) for factor in factors_of(model, layer))
    return sum(factor.numel() * factor.element_size() for factor in factors)


def refuse_embeddings(model: Any) -> None:
    """Raise PlanError for a target that is no linear layer: PEFT would start it at zero, unasked."""
    name = next((name for name, module in model.named_modules() if len(getattr(module, "lora_embedding_A", ()))), None)
    if name is not None:
        what = f"pissa decomposes linear layers, and {name.removeprefix('base_model.model.')} is an embedding"
        raise PlanError([Problem("use.lora.targets", what, "leave it out, or name it in modules_to_save")])


def refuse_narrow(model: Any) -> None:
    """Raise PlanError where base or adapter is stored in less than fp32."""
    for name, layer in adapted_layers(model):
        for part in (layer.get_base_layer().weight, *factors_of(model, layer)):
            if part.dtype != torch.float32:
                what = f"{name.removeprefix('base_model.model.')} is stored in {str(part.dtype).removeprefix('torch.')}"
                remedy = "set use.precision.weights: fp32, and leave use.precision.pure out"
                reason = f"{what}, in which residual and principal part do not add up to the weight"
                raise PlanError([Problem("use.pissa", reason, remedy)])
