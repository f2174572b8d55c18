"""What speaks against a method in a recipe, before anything is imported or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunekit.errors import Problem
from tunekit.values import Plan, StagePlan
from tunekit_lora.saved import read_configuration

NOTHING = "no adapter in PEFT's format"
"""What a folder holds that holds no adapter."""


def problems(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """Quantised weights of a kind that it was not tried on, and saved adapters of another method."""
    request = plugin.request
    for planned in plan.plugins:
        provided = planned.plugin.provides
        if "quantization" in provided and "quantization.bnb" not in provided:
            what = f"{request.method} has not been seen to train on weights of {planned.name}"
            yield Problem(f"use.{request.plugin}", what, "use lora there, or bnb")
        elif "quantization" in provided and planned.plugin.config.bits not in request.entry.quantized:
            what = f"{request.method} does not train on {planned.plugin.config.bits}-bit weights of {planned.name}"
            known = " or ".join(map(str, request.entry.quantized))
            yield Problem(f"use.{request.plugin}", what, f"set use.{planned.name}.bits: {known}, or use lora there")
    for stage in plan.stages:
        if stage.start is not None and _attaches(plugin, plan, stage):
            saved = saved_method(stage.start)
            if saved != request.method:
                what = f"{stage.start} holds {saved or NOTHING}, and not {request.method}"
                yield Problem(f"{stage.key}.adapter.start", what, "name an adapter of this method")


def _attaches(plugin: Any, plan: Plan, stage: StagePlan) -> bool:
    """Whether this plugin is the one that attaches the adapter of a stage."""
    own = [use.plugin for use in stage.uses if hasattr(use.plugin, "tunekit_attach_adapter")]
    shared = [one.plugin for one in plan.plugins if one.stage is None and hasattr(one.plugin, "tunekit_attach_adapter")]
    return next(iter(own or shared), None) is plugin


def saved_method(folder: Path) -> str | None:
    """The method of a saved adapter; None where the folder holds none."""
    return str(read_configuration(folder).get("peft_type", "")).lower() or None
