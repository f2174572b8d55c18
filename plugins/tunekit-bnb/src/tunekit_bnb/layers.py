"""The linear layers of a model and how bitsandbytes stores them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tunekit.errors import PlanError, Problem, TunekitError, nearest
from tunekit.values import BYTES, Estimate, Report

from . import HEADS, BnbConfig


def estimate_weights(config: BnbConfig, dtype: str, estimate: Estimate) -> Estimate:
    """Take the linear layers of the skeleton out of the weights at `dtype` and put them back quantised."""
    assert estimate.skeleton is not None, "the loader's estimate comes before the quantiser's"
    layers = to_quantize(estimate.skeleton, config)
    dense = sum(layer.weight.numel() for layer in layers) * BYTES[dtype]
    stored = sum(stored_bytes(config, *layer.weight.shape) for layer in layers)
    for layer in layers:
        layer.weight.requires_grad_(False)
    trainable = sum(parameter.numel() for parameter in estimate.skeleton.parameters() if parameter.requires_grad)
    weights = estimate.memory.get("weights", 0) - dense + stored
    return replace(estimate, trainable=trainable, memory=estimate.with_memory(weights=weights))


def stored_bytes(config: BnbConfig, rows: int, columns: int) -> int:
    """Bytes of a quantised weight with its scales: one scale per row in 8 bits, one per 64 weights in 4."""
    if config.bits == 8:
        return rows * columns + 4 * rows
    return math.ceil(rows * columns * (4 + config.scale_bits) / 8)


def to_quantize(model: Any, config: BnbConfig) -> list[Any]:
    """Find the layers that bitsandbytes will replace. PlanError where a name in `skip` keeps none."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    linear = _linear_layers(model)
    _check_skip(config.skip, linear)
    head = model.get_output_embeddings()
    kept = [*config.skip, *HEADS] if config.skip else None
    return [layer for name, layer in linear.items() if layer is not head and should_convert_module(name, kept)]


def steady(config: BnbConfig, model: Any) -> Report:
    """Change quantised layers, in place, so that they hold and compute the same before and after an evaluation.

    On a CPU with AVX512-BF16 bitsandbytes repacks 4-bit weights in place in the first evaluation. From then on no
    gradient flows through a layer, dequantising reads garbage, and the scales are rounded. So repacking is switched
    off for these layers. TunekitError where the loader quantised nothing.
    """
    import bitsandbytes

    _check_skip(config.skip, _linear_layers(model))
    kinds: Any = bitsandbytes.nn
    kind = kinds.Linear4bit if config.bits == 4 else kinds.Linear8bitLt
    layers = [module for module in model.modules() if isinstance(module, kind)]
    if not layers:
        raise TunekitError("use.bnb: the loaded model has no quantised layer", "name a loader that can quantise")
    details = {"layers": len(layers), "bits": config.bits}
    if config.bits == 8:
        return Report(f"{len(layers)} linear layers in 8 bits", details, undo=_silence_casts())
    before = [(layer, layer.support_avx512bf16_for_cpu) for layer in layers]
    _set_repacking((layer, False) for layer in layers)
    summary = f"{len(layers)} linear layers in {config.kind}, never repacked"
    return Report(summary, details, undo=lambda: _set_repacking(before))


def _linear_layers(model: Any) -> dict[str, Any]:
    import torch
    from transformers.pytorch_utils import Conv1D

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)}


def _check_skip(skip: Iterable[str], linear: Iterable[str]) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    names = list(linear)
    idle = [part for part in skip if all(should_convert_module(name, [part]) for name in names)]
    last = sorted({name.rpartition(".")[2] for name in names})
    if idle:
        raise PlanError(
            Problem("use.bnb.skip", f"the model has no linear layer named {part!r}", _suggest(part, last))
            for part in idle
        )


def _suggest(name: str, known: list[str]) -> str:
    close = nearest(name, known)
    return f"did you mean {close!r}?" if close else f"it has {', '.join(known)}"


def _set_repacking(layers: Iterable[tuple[Any, Any]]) -> None:
    for layer, allowed in layers:
        layer.support_avx512bf16_for_cpu = allowed


def _silence_casts() -> Any:
    """Drop the message that bitsandbytes logs for every layer in every call in 8 bits; give back how to undo it."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")

    logger.addFilter(keep)
    return lambda: logger.removeFilter(keep)
