"""What the plugins of mixtures cannot work with, found before anything trains."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from tunekit.errors import PlanError, Problem
from tunekit.values import Plan
from tunekit_train import Stage


def foreign_stages(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """Stages that another library trains have a loss of their own."""
    for planned in plan.plugins:
        if planned.plugin is not plugin:
            continue
        for stage in plan.stages:
            seen = planned.stage is None or planned.stage == stage.index
            if seen and not isinstance(stage.plugin.plugin, Stage):
                what = f"adds to losses of tunekit's own engine, and {stage.name} is trained by another library"
                yield Problem(planned.key, what, "name it in a stage of that engine")


def notes(plan: Plan) -> Iterator[str]:
    """What is worth knowing of the loss before a stage begins."""
    for stage in plan.stages:
        batch = getattr(stage.plugin.plugin.config, "batch", None)
        if batch is not None and batch.accumulation > 1:
            yield (
                f"{stage.key}: experts are kept evenly used inside each micro-batch, so {batch.accumulation} of them "
                "are not one large batch"
            )


def refuse_without_router(model: Any, weight: float | None) -> float:
    """The weight of the router loss of this model; PlanError where it has no router, or no weight of its own."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind, own = type(base).__name__, getattr(base.config.get_text_config(), "router_aux_loss_coef", None)
    if "output_router_logits" not in inspect.signature(base.forward).parameters:
        what = f"adds the loss of a router, and {kind} has none that its own code tells of"
        raise PlanError([Problem("use.moe", what, "leave it out")])
    if weight is None and not own:
        what = f"is not set, and the config of {kind} gives it no weight (router_aux_loss_coef)"
        raise PlanError([Problem("use.moe.router_loss", what, "set it, to 0.001 for example")])
    return weight or float(own)  # type: ignore[arg-type]  # one of the two is above 0 here
