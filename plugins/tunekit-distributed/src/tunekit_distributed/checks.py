"""How many processes a run has, and what cannot be shared out among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.calls import implements
from tunekit.errors import Problem
from tunekit.launching import place_here
from tunekit.values import Machine, Plan
from tunekit_train.checks import uneven
from tunekit_train.config import TrainConfig
from tunekit_train.tricks import trick_problems

COLLECTIVE = frozenset({"cpu", "cuda", "xpu", "npu"})
"""Devices that torch can train on in several processes."""


def count_of(config: Any, plan: Plan, machine: Machine) -> int:
    """The number of processes: as torchrun has started, as the recipe says, or one for each accelerator."""
    place = place_here()
    if place is not None:
        return place[1]
    if config.processes != "auto":
        return int(config.processes)
    return sum(each.kind == plan.precision.device for each in machine.accelerators)


def problems(plugin: Any, plan: Plan, machine: Machine) -> Iterator[Problem]:
    """What cannot be shared out among the processes."""
    key = next(planned.key for planned in plan.plugins if planned.plugin is plugin)
    count, place, device = count_of(plugin.config, plan, machine), place_here(), plan.precision.device
    where = f"{key}.processes"
    if device not in COLLECTIVE:
        yield Problem(key, f"trains in several processes, and {device} cannot", "leave it out")
    elif count < 1:
        yield Problem(where, "is auto, and there is no accelerator to count", "say how many: 2, for example")
    elif place is not None and plugin.config.processes not in ("auto", place[1]):
        what = f"is {plugin.config.processes}, but this is one of {place[1]} processes (WORLD_SIZE)"
        yield Problem(where, what, "leave it to auto")
    elif device != "cpu" and place is None and count > sum(each.kind == device for each in machine.accelerators):
        yield Problem(where, f"is {count}, and there are fewer accelerators", "choose auto")
    else:
        for stage in plan.stages:
            if isinstance(stage.plugin.plugin.config, TrainConfig):
                yield from uneven(stage.plugin.plugin.config, count, stage.key)
                yield from trick_problems(stage.plugin.plugin.config, stage.key, plugin.way, plugin.obstacle)
        yield from _optimizers(plugin, plan)


def _optimizers(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """An optimiser that looks at whole matrices gives other steps on parts of them."""
    if plugin.whole_gradients:
        return
    for planned in plan.plugins:
        if implements(planned.plugin, "tunekit_optimizer") and "optimizer.elementwise" not in planned.plugin.provides:
            what = f"{planned.name} is not known to treat each number by itself, and gradients are in parts here"
            yield Problem(planned.key, what, "use adamw, or `ddp`")
