"""The linear layers of a model and how they are stored in few bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit.values import Report
from tunekit_transformers.frozen_product import dense_linear, replace_products_
from tunekit_transformers.quantizing import (
    OTHERWISE,
    forget_quantization,
    layers_to_quantize,
    refuse_fused_experts,
    refuse_transposed,
    refuse_uneven,
    shape_of,
)

from .stored import Storage
from .unpacking import gptq_weight

if TYPE_CHECKING:
    from torch import Tensor

SCALE_BITS = 16
"""Bits of a scale."""
SMALLEST_GROUP = 16


@dataclass(frozen=True)
class Kind:
    """A method as it looks in a loaded model: its name, how its layers are recognised, and their weight [in out]."""

    method: str
    is_layer: Callable[[Any], bool]
    weight: Callable[[Any], Tensor]

    def layers(self, model: Any) -> dict[str, Any]:
        """The quantised layers by name; TunekitError where the loader has quantised nothing."""
        found = {name: module for name, module in model.named_modules() if self.is_layer(module)}
        if not found:
            message = f"use.{self.method}: the loaded model has no layer that is stored so"
            raise TunekitError(message, "name a loader that can read it, such as transformers")
        return found

    def dense(self, layer: Any, dtype: Any) -> Tensor:
        """The weight of a layer as an ordinary one has it, [out in]."""
        return self.weight(layer).t().to(dtype)


def steady(kind: Kind, model: Any) -> Report:
    """Change quantised layers, in place, so that they compute the same in training and evaluation, as dense ones do.

    gptqmodel's own products keep each unpacked weight until the backward, which is the memory of the dense model again.
    Those of AWQ round what they are given to fp16, and rewrite their scales in the dtype of what they are given.
    """
    layers = list(kind.layers(model).values())
    biases = [(layer, layer.bias) for layer in layers if layer.bias is not None]
    for layer, bias in biases:
        layer.bias = bias.to(model.dtype)
    take_back = replace_products_(layers, partial(kind.dense, dtype=model.dtype))

    def undo() -> None:
        take_back()
        for layer, bias in biases:
            layer.bias = bias

    summary = f"{len(layers)} linear layers in {kind.method}, unpacked for each product and kept packed"
    return Report(summary, {"layers": len(layers), "bits": sorted({layer.bits for layer in layers})}, undo=undo)


def dense(kind: Kind, model: Any) -> Any:
    """Put ordinary layers of the same weights in the place of the quantised ones; return the model.

    In the dtype of its other weights, in which each product has used them.
    """
    for name, layer in kind.layers(model).items():
        new = dense_linear(kind.dense(layer, model.dtype).contiguous(), layer.bias)
        model.set_submodule(name, new.train(layer.training))
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map  # with which transformers would take the weights for offloaded ones
    return forget_quantization(model)


def layers_to_pack(storage: Storage, model: Any, key: str) -> dict[str, Any]:
    """The layers of a model that are stored so.

    PlanError under `key` where the groups do not divide their inputs, and for what would not be found when it is read:
    a `Conv1D`, and fused experts.
    """
    refuse_fused_experts(model, key, OTHERWISE, storage.covers)
    linear = layers_to_quantize(model, (), key)
    layers = {name: layer for name, layer in linear.items() if storage.covers(name)}
    refuse_transposed(layers, key)
    size = None if storage.group_size == -1 else storage.group_size
    refuse_uneven(layers, size, f"{key}.group_size", "take -1 for one group a column", least=SMALLEST_GROUP)
    return layers


def refuse_narrow(layers: Mapping[str, Any], outputs: Callable[[str], int], key: str) -> None:
    """Raise PlanError for a layer whose outputs are no multiple of what `outputs` asks of a layer of its name."""
    for name, layer in layers.items():
        rows, _ = shape_of(layer)
        if rows % outputs(name):
            what = f"{name} has {rows} outputs, and gptqmodel takes them in blocks of {outputs(name)}"
            raise PlanError([Problem(key, what, OTHERWISE)])


def stored_bytes(storage: Storage, rows: int, columns: int) -> int:
    """Bytes of a quantised weight [out in] with scales, zeros and, where there is one, the group of each input."""
    groups = 1 if storage.group_size == -1 else math.ceil(columns / storage.group_size)
    integers = rows * (columns + groups) * storage.bits // 8
    return integers + groups * rows * SCALE_BITS // 8 + 4 * columns * storage.indexed


def _is_gptq(module: Any) -> bool:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # type: ignore[import-not-found, import-untyped]

    return isinstance(module, TorchLinear)


GPTQ = Kind("gptq", _is_gptq, gptq_weight)
"""Layers of gptqmodel's torch kernel."""
