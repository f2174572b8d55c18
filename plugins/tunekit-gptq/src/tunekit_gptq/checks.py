"""What cannot be read or quantised, said before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from tunekit.errors import Problem
from tunekit.values import Plan
from tunekit_transformers.dense_exports import dense_problems, key_of

from .packed import ALWAYS, Packed, PackedExport
from .stored import stored

NEEDED = ("gptqmodel", "optimum")


def problems(plugin: Packed[Any], plan: Plan) -> Iterator[Problem]:
    """All that is wrong with this plugin in this plan."""
    key = next((planned.key for planned in plan.plugins if planned.plugin is plugin), f"use.{plugin.method}")
    yield from _missing(plugin.method, key)
    said = stored(plan.load_request)
    if said is None:
        yield from _no_calibration(plugin, plan, key)
    elif said["quant_method"] == plugin.method:
        yield from _stored(plugin, said, key)


def export_problems(target: PackedExport[Any], plan: Plan) -> Iterator[Problem]:
    """All that is wrong with this export."""
    yield from _missing(target.method, key_of(target, plan))
    yield from dense_problems(target, plan)


def _missing(method: str, key: str) -> Iterator[Problem]:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        what = f"needs {' and '.join(missing)}, which is not installed"
        yield Problem(key, what, f"`pip install 'tunekit-{method}[gptqmodel]'`")


def _no_calibration(plugin: Packed[Any], plan: Plan, key: str) -> Iterator[Problem]:
    if not plan.stages and plan.purpose != "open":  # a run has kept what it has quantised
        what = f"quantises {plan.recipe.model} by data of the first stage, and there is no stage"
        yield Problem(key, what, "add a stage, or name a model that is quantised already")


def _stored(plugin: Packed[Any], said: Mapping[str, Any], key: str) -> Iterator[Problem]:
    """A layout that the kernel cannot read, and options that mean nothing."""
    layout = str(said.get("checkpoint_format") or said.get("format") or said.get("version") or plugin.layouts[0])
    if layout.lower() not in plugin.layouts:
        what = f"the checkpoint is in the layout {layout}, and {' and '.join(plugin.layouts)} can be trained on"
        yield Problem("model", what, "name a copy in one of these")
    elif said.get("is_marlin_format"):
        yield Problem("model", "the checkpoint is in the layout marlin, for one kind of GPU", "name a copy in gptq")
    for name in sorted(plugin.config.model_fields_set - ALWAYS):
        yield Problem(f"{key}.{name}", "means nothing: the model is quantised already, as its checkpoint says",
                      "leave it out, or name the dense model")  # fmt: skip
