"""What targets share that write merged weights: what none of them can hold, known before a run begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunekit.calls import implements
from tunekit.errors import Problem
from tunekit.values import ExportPlan, Plan, StagePlan

from .sources import has_weights_of_old
from .stored import stored_quantization

WHOLE = "take the folder `model` of the run, which has the head beside it (value_head.safetensors)"
"""What to do with a reward model that was trained as a whole."""


def key_of(plugin: Any, plan: Plan) -> str:
    """Where the recipe names this export."""
    found = _planned(plugin, plan)
    return "export" if found is None else found.key


def dense_problems(plugin: Any, plan: Plan, images: bool = False) -> Iterator[Problem]:
    """What merged weights cannot be written for: its config is a `DenseExportConfig`.

    `images` says that the target holds models that read images as well.
    """
    key = key_of(plugin, plan)
    if plugin.config.base == "original":
        yield from _no_original(plan, f"{key}.base")
    valuing = valuing_stage(plugin, plan)
    if valuing is not None:
        what = f"{valuing} trains a reward model, whose head these files cannot hold"
        beside = "export the adapter, which has the head beside it: `adapter: {}`"
        yield Problem(key, what, beside if plan.provides("adapter") else WHOLE)
    if (obstacle := _obstacle(plugin, plan)) is not None:
        yield Problem(key, obstacle, "export the adapter alone: `adapter: {}`")
    if not images and plan.provides("model.vision"):
        what = f"{plan.recipe.model} reads images, and these files hold text models alone"
        yield Problem(key, what, "export it merged: `merged: {}`")


def valuing_stage(plugin: Any, plan: Plan) -> str | None:
    """The stage that has made a reward model of what is exported; None where it is a model that writes."""
    stages = _stages_of(plugin, plan)
    return stages[-1].name if stages and implements(stages[-1].plugin.plugin, "tunekit_score") else None


def _obstacle(plugin: Any, plan: Plan) -> str | None:
    """Why the adapter that is exported cannot be added into the weights; None where it can, or there is none."""
    stages = _stages_of(plugin, plan)
    if not stages:
        return None
    shared = (planned for planned in plan.plugins if planned.stage is None)
    seen = (*stages[0].uses, *shared)  # the first stage says how an adapter is made
    adapter = next((planned for planned in seen if "adapter" in planned.plugin.provides), None)
    if adapter is None:
        return None
    if "adapter.apart" in adapter.plugin.provides:
        return f"what {adapter.name} trains stands beside the weights, and cannot be added into them"
    if "adapter.named" not in adapter.plugin.provides:
        return f"{adapter.name} knows no way to add what it trains into the weights"
    return None


def _stages_of(plugin: Any, plan: Plan) -> list[StagePlan]:
    """The stages that train what is exported."""
    planned = _planned(plugin, plan)
    adapter = planned.adapter if planned is not None and planned.adapter is not None else plan.final_adapter
    return [stage for stage in plan.stages if stage.adapter == adapter]


def _planned(plugin: Any, plan: Plan) -> ExportPlan | None:
    return next((export for export in plan.exports if export.plugin.plugin is plugin), None)


def _no_original(plan: Plan, key: str) -> Iterator[Problem]:
    model = str(plan.recipe.model)
    if not plan.provides("quantization"):
        yield Problem(key, "is original, and the base is not quantised, so there is no other", "leave it out")
    elif stored_quantization(plan.load_request) is not None or has_weights_of_old(Path(model).expanduser()):
        what = f"is original, and {model} itself is stored quantised, so there is no other"
        yield Problem(key, what, "leave it out")
