"""Which adapters the stages train, and whether this is possible with who attaches them."""

from __future__ import annotations

from collections.abc import Iterator

from ..calls import Calls
from ..errors import Problem
from ..values import DEFAULT_ADAPTER, Plan, PlannedPlugin, StagePlan
from .bases import EXTENDED, other_base

ADAPTER = "adapter"
"""The capability of a plugin that puts parameters of its own on the base, and trains those."""
NAMED = "adapter.named"
"""The capability of an adapter plugin that carries several adapters on one model."""
SAVED = "adapter.saved"
"""The capability of an adapter plugin that begins with a saved one."""
BASE_CHANGED = "base.changed"
"""What a plugin provides that changes the base while it attaches an adapter, so that no other can stand beside it."""


def adapter_problems(plan: Plan, calls: Calls) -> Iterator[Problem]:
    """What the recipe asks of adapters that cannot be had."""
    seen: set[str] = set()
    for stage in plan.stages:
        view = calls.for_stage(stage.index)
        owner = view.owner("tunekit_attach_adapter")
        if stage.adapter not in seen:
            yield from _problems_of_first(plan, stage, owner)
        else:
            yield from _too_late(stage)
        seen.add(stage.adapter)


def _problems_of_first(plan: Plan, stage: StagePlan, owner: PlannedPlugin | None) -> Iterator[Problem]:
    """Those of the stage in which an adapter is trained first."""
    several = len(plan.adapters) > 1
    if several or stage.adapter != DEFAULT_ADAPTER:
        yield from _not_named(stage, owner)
    changing = next((one for one in plan.plugins if BASE_CHANGED in one.plugin.provides), None)
    if several and changing is not None and stage.adapter != DEFAULT_ADAPTER:
        message = f"is {stage.adapter}, but {changing.name} changes the base, on which every adapter stands"
        yield Problem(f"{stage.key}.adapter", message, f"take {changing.name} out, or train one adapter only")
    if stage.start is not None:
        yield from _not_started(plan, stage, owner)


def _not_named(stage: StagePlan, owner: PlannedPlugin | None) -> Iterator[Problem]:
    if owner is not None and NAMED in owner.plugin.provides:
        return
    which = "one that is shared" if stage.adapter == DEFAULT_ADAPTER else f"one named {stage.adapter}"
    trains = "no plugin here makes adapters" if owner is None else f"{owner.name} trains the weights of the base"
    message = f"is to train an adapter, {which}, beside others, but {trains}"
    yield Problem(f"{stage.key}.adapter", message, "add `lora: {}` to use, or leave `adapter` out of every stage")


def _not_started(plan: Plan, stage: StagePlan, owner: PlannedPlugin | None) -> Iterator[Problem]:
    key, start = f"{stage.key}.adapter.start", stage.start
    assert start is not None
    if owner is None or SAVED not in owner.plugin.provides:
        message = f"{owner.name if owner else 'what trains all weights'} begins with no saved adapter"
        yield Problem(key, message, "add `lora: {}` to use, or name the folder of a whole model as `model:`")
    elif (start / "run.json").is_file():
        yield Problem(key, f"{start} is a whole run", "name the adapter folder inside it, such as stage-1-sft/adapter")
    elif not start.is_dir():
        yield Problem(key, f"there is no folder {start}", "check the path")
    elif (other := other_base(start, plan.plugins, key, {EXTENDED})) is not None:
        yield other


def _too_late(stage: StagePlan) -> Iterator[Problem]:
    """What only the first stage of an adapter can say."""
    earlier = "which an earlier stage trains already"
    if stage.start is not None:
        message = f"says where the adapter {stage.adapter!r} starts, {earlier}"
        yield Problem(f"{stage.key}.adapter.start", message, "say it in the first stage that trains it")
    for use in stage.uses:
        if NAMED in use.plugin.provides or SAVED in use.plugin.provides:
            message = f"says how to make the adapter {stage.adapter!r}, {earlier}"
            yield Problem(use.key, message, "say it in the first stage that trains it, or name another adapter")
