"""A learning rate that rises and never falls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tunekit.calls import implements
from tunekit.errors import Problem
from tunekit.values import Plan
from tunekit_train import TrainConfig

RISING = frozenset({"constant", "constant_with_warmup"})


def highest_so_far(factor: Callable[[int], float]) -> Callable[[int], float]:
    """The largest of the factors up to each step."""
    known: list[float] = []

    def highest(step: int) -> float:
        while len(known) <= step:
            known.append(max(factor(len(known)), known[-1] if known else 0.0))
        return known[step]

    return highest


def falling(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """Schedules that a recipe names, that fall, and that this optimiser would have to ignore."""
    for stage in plan.stages:
        named = [use for use in stage.uses if implements(use.plugin, "tunekit_optimizer")]
        config = stage.plugin.plugin.config
        if (named and named[0].plugin is not plugin) or not isinstance(config, TrainConfig):
            continue  # another optimiser trains it
        shape = config.schedule.shape
        if "shape" in config.schedule.model_fields_set and shape not in RISING:
            what = f"is {shape}, and schedule-free averages instead of letting the rate fall"
            yield Problem(f"{stage.key}.schedule.shape", what, "leave it out, or use constant_with_warmup")
