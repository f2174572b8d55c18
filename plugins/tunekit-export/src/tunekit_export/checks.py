"""What cannot be exported so, known from the plan alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunekit.errors import Problem
from tunekit.values import Machine, Plan
from tunekit_transformers import stored_quantization
from tunekit_transformers.dense_exports import WHOLE, dense_problems, key_of, valuing_stage

from .architectures import obstacles

ADAPTER = "adapter"
MERGED = "export the model: `merged: {}`"


def adapter_problems(plugin: Any, plan: Plan, machine: Machine) -> Iterator[Problem]:
    """Those of the adapter alone."""
    valued = valuing_stage(plugin, plan) is not None
    if not plan.provides(ADAPTER):
        yield Problem(key_of(plugin, plan), "the run trains no adapter", WHOLE if valued else MERGED)
    stored = stored_quantization(plan.load_request) if plan.provides("quantization.aqlm") else None
    if stored is not None and stored.get("nbits_per_codebook") == 8 and not machine.accelerators:
        what = "its codes of one byte are read by aqlm's kernel for CPUs, which turns them around where they lie"
        instead = "take the folder `adapter` of the run, which is in PEFT's format" if valued else MERGED
        yield Problem(key_of(plugin, plan), f"cannot be compared here: {what}", instead)


def gguf_problems(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """Those of a GGUF file. Of a model that is not a folder, all but these show when it is exported."""
    yield from dense_problems(plugin, plan)
    config = Path(str(plan.recipe.model)).expanduser() / "config.json"
    if config.is_file():
        for obstacle in obstacles(json.loads(config.read_text(encoding="utf-8"))):
            message = f"{plan.recipe.model} cannot be written as GGUF: {obstacle}"
            yield Problem(key_of(plugin, plan), message, "export it merged: `merged: {}`")


def hub_problems(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """Those of a hub."""
    key, config = key_of(plugin, plan), plugin.config
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"} and config.endpoint is None:
        yield Problem(key, "HF_HUB_OFFLINE forbids to ask the hub", "unset it, or leave the hub out")
    names = [export.name for export in plan.exports]
    if len(names) != len(plan.recipe.exports):
        return  # of a finished run, whose record knows what was made
    before = names[: next(at for at, export in enumerate(plan.exports) if export.plugin.plugin is plugin)]
    if not before:
        yield Problem(key, "comes first, so there is nothing to push", "name an export before it, such as `merged: {}`")
    elif config.of is not None and config.of not in before:
        yield Problem(f"{key}.of", f"is {config.of!r}, which is not made before", f"before it come {', '.join(before)}")
