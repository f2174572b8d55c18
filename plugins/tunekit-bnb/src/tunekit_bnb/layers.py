"""The linear layers of a model and how bitsandbytes stores them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import Estimate, Precision, Report
from tunekit_transformers.quantizing import (
    forget_quantization,
    layers_to_quantize,
    linear_layers,
    refuse_idle_names,
    stored_estimate,
)

from . import PLAIN_INPUTS, BnbConfig

SKIP = "use.bnb.skip"


def estimate_weights(config: BnbConfig, dtype: str, estimate: Estimate, dense: Iterable[str] = ()) -> Estimate:
    """Take the linear layers of the skeleton out of the weights at `dtype` and put them back quantised."""
    layers = layers_to_quantize(estimate.skeleton, config.skip, SKIP, dense)
    return stored_estimate(estimate, layers, dtype, partial(stored_bytes, config))


def stored_bytes(config: BnbConfig, rows: int, columns: int) -> int:
    """Bytes of a quantised weight with its scales: one scale per row in 8 bits, one per 64 weights in 4."""
    if config.bits == 8:
        return rows * columns + 4 * rows
    return math.ceil(rows * columns * (4 + config.scale_bits) / 8)


def steady(config: BnbConfig, model: Any, precision: Precision) -> Report:
    """Change quantised layers, in place, so that they compute the same in training, in evaluation and after one.

    TunekitError where the loader quantised nothing.
    """
    import bitsandbytes

    refuse_idle_names(config.skip, linear_layers(model), SKIP)
    kinds: Any = bitsandbytes.nn
    kind = kinds.Linear4bit if config.bits == 4 else kinds.Linear8bitLt
    layers = [module for module in model.modules() if isinstance(module, kind)]
    if not layers:
        raise TunekitError("use.bnb: the loaded model has no quantised layer", "name a loader that can quantise")
    details = {"layers": len(layers), "bits": config.bits}
    how, undo = _steady_int8(layers, precision) if config.bits == 8 else _steady_4bit(layers, precision.compute)
    return Report(f"{len(layers)} linear layers in {config.kind if config.bits == 4 else '8 bits'}{how}", details, undo)


def _steady_4bit(layers: list[Any], compute: str) -> tuple[str, Callable[[], None]]:
    """Switch off that weights are repacked; products run in `compute`, whatever a quantised checkpoint says of them.

    On a CPU with AVX512-BF16 bitsandbytes repacks 4-bit weights in place in the first evaluation. From then on no
    gradient flows through a layer, dequantising reads garbage, and the scales are rounded.
    """
    import torch

    before = [(layer, layer.support_avx512bf16_for_cpu, layer.compute_dtype) for layer in layers]
    _set_kernels((layer, False, getattr(torch, compute)) for layer in layers)
    return ", never repacked", lambda: _set_kernels(before)


def _steady_int8(layers: list[Any], precision: Precision) -> tuple[str, Callable[[], None]]:
    """On a CPU or an Intel GPU, multiply by the dense weight in both modes, as bitsandbytes itself does in training.

    In evaluation it rounds there what goes into a layer. What a policy under training says would then be compared with
    what its reference says through other layers, as if it had learnt something before its first step.
    """
    if precision.device not in PLAIN_INPUTS:
        return "", _silence_casts()
    import torch

    from tunekit_transformers.frozen_product import replace_products_

    dtype = getattr(torch, precision.weights)
    put_back = replace_products_(layers, lambda layer: _weight(layer).to(dtype))
    return ", dense for each product, whose inputs are not rounded", put_back


def dense(model: Any, dtype: str) -> Any:
    """Put ordinary layers of the same weights, in `dtype`, in the place of the quantised ones; return the model.

    A layer that was repacked for a CPU is unpacked first: its bytes read as they lie are garbage. What was a `Conv1D`
    becomes one again, so that the weights can be saved and loaded as those of the architecture.
    """
    import bitsandbytes

    kinds: Any = bitsandbytes.nn
    for name, layer in list(model.named_modules()):
        if isinstance(layer, kinds.Linear4bit | kinds.Linear8bitLt):
            model.set_submodule(name, _dense_layer(layer, dtype))
    return forget_quantization(model)


def _dense_layer(layer: Any, dtype: str) -> Any:
    import torch
    from transformers.pytorch_utils import Conv1D

    from tunekit_transformers.frozen_product import as_conv1d, dense_linear

    new = dense_linear(_weight(layer).to(getattr(torch, dtype)), layer.bias)
    turned = getattr(layer, "source_cls", None) is Conv1D
    return (as_conv1d(new) if turned else new).train(layer.training)


def _weight(layer: Any) -> Any:
    """[out in] in the dtype that bitsandbytes dequantises to."""
    import bitsandbytes

    functional: Any = bitsandbytes.functional
    if hasattr(layer, "state"):
        scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        return functional.int8_vectorwise_dequant(layer.weight.data, scales)
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        layer.state_dict()  # unpacks, in place
    return functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def _set_kernels(layers: Iterable[tuple[Any, bool, Any]]) -> None:
    for layer, repacked, compute in layers:
        layer.support_avx512bf16_for_cpu, layer.compute_dtype = repacked, compute


def _silence_casts() -> Any:
    """Drop the message that bitsandbytes logs for every layer in every call in 8 bits; give back how to undo it."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")

    logger.addFilter(keep)
    return lambda: logger.removeFilter(keep)
