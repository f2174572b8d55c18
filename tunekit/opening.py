"""Loading the model of a plan: as the run stores it, or in dense layers, for what is to be merged and exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from .adapters import NamedAdapters
from .calls import Calls
from .data import first_data, load_tokenizer
from .errors import TunekitError
from .values import Context, LoadRequest, ModelBundle, Plan, PlannedPlugin, Quantization, Report

QUANTIZED = "quantization"
"""What a plugin provides that stores weights in fewer bits."""


def open_model(
    plan: Plan, folder: Path, model: Path | None = None, purpose: Literal["train", "infer"] = "infer"
) -> NamedAdapters:
    """Load the model of a plan without an adapter; `model` are trained weights in place of the base's."""
    context, request = _asked(plan, plan.plugins, folder, model)
    bundle, patched = load(context, replace(request, purpose=purpose), plan)
    return NamedAdapters(bundle, context, plan.stages, patched)


def open_dense(plan: Plan, folder: Path, model: Path | None = None, original: bool = False) -> NamedAdapters:
    """Load the model in ordinary float32 layers: of the weights as the plan stores them, or of the `original` ones.

    Raises TunekitError where the method of the quantisation knows no way back.
    """
    precision = replace(plan.precision, weights="float32", compute="float32", trainable="float32")
    dense = [planned for planned in plan.plugins if QUANTIZED not in planned.plugin.provides]
    if original or len(dense) == len(plan.plugins):
        context, request = _asked(replace(plan, precision=precision), dense, folder, model)
        bundle, patched = load(context, request, replace(plan, precision=precision))
    else:
        context, request = _asked(plan, plan.plugins, folder, model)
        bundle, patched = load(context, replace(request, purpose="train"), plan)  # kernels that give weights back
        bundle = replace(bundle, model=_dequantized(bundle).float(), quantization=None, precision=precision)
        context = replace(context, precision=precision)
    return NamedAdapters(bundle, context, plan.stages, patched)


def load(context: Context, request: LoadRequest, plan: Plan) -> tuple[ModelBundle, dict[str, Report]]:
    """Quantise, prepare, load and patch."""
    calls = context.calls
    assert isinstance(calls, Calls)
    if calls.owner("tunekit_quantize") is not None:
        quantization: Quantization = calls.own("tunekit_quantize", request=request)
        request = replace(request, quantization=quantization)
    request = calls.chain("tunekit_before_load", "request", request, plan=plan, context=context)
    bundle: ModelBundle = calls.own("tunekit_load_model", request=request, context=context)
    reports = {planned.name: report for planned, report in calls.each("tunekit_patch", bundle=bundle)}
    return bundle, reports


def _asked(
    plan: Plan, plugins: Sequence[PlannedPlugin], folder: Path, model: Path | None
) -> tuple[Context, LoadRequest]:
    """What the loader is asked, with the tokenizer, and the context it is asked in."""
    calls = Calls(plugins)
    context = Context(calls.for_run(), plan.machine, plan.precision, folder, plan.recipe.seed, lambda event: None)
    request = plan.load_request
    tokenizer, _ = load_tokenizer(context, request)
    data = first_data(plan, calls, tokenizer)
    request = replace(request, purpose="infer", tokenizer=tokenizer, data=data)
    return replace(context, data=data), request if model is None else replace(request, model=str(model))


def _dequantized(bundle: ModelBundle) -> Any:
    quantization = bundle.quantization
    if quantization is None or quantization.dequantize is None:
        method = "the quantisation" if quantization is None else quantization.method
        raise TunekitError(
            f"{method} of {bundle.source} has no way back to dense weights",
            "merge into the original weights with `base: original`, or export the adapter alone",
        )
    return quantization.dequantize(bundle.model)
