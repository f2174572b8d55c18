"""What the engine does for a cheaper run that may not hold in several processes: by name, and who has asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

from tunekit.calls import implements
from tunekit.errors import Problem
from tunekit.values import Plan

from .config import TrainConfig

Trick = Literal[
    "lora_product",
    "frozen_layers",
    "scored_apart",
    "chunked_head",
    "switch_off",
    "value_head",
    "best",
    "own_save",
    "compile",
]

TRICKS: tuple[Trick, ...] = get_args(Trick)

Obstacle = Callable[[Trick], str | None]
"""Why a trick does not hold, or None where it does."""


def asked_for(config: TrainConfig) -> Iterator[tuple[Trick, str, str]]:
    """The tricks that the options of a stage insist on, each with its option and what to do without it."""
    if config.checkpoint.best:
        yield "best", "checkpoint.best", "leave it out"
    if config.compute.compile:
        yield "compile", "compute.compile", "leave it out"
    if config.compute.chunked_head == "always":
        yield "chunked_head", "compute.chunked_head", "leave it to auto"


def trick_problems(config: TrainConfig, key: str, way: str, obstacle: Obstacle) -> Iterator[Problem]:
    """What the options insist on and does not hold: nothing that was asked for is left out without a word."""
    for trick, option, remedy in asked_for(config):
        if (why := obstacle(trick)) is not None:
            yield Problem(f"{key}.{option}", f"does not hold under {way}: {why}", f"{remedy}, or use `ddp`")


def obstacle_of(plan: Plan, trick: Trick) -> str | None:
    """Why a trick will not hold in the processes that a plan starts, as the plugin that starts them knows."""
    launchers: list[Any] = [each.plugin for each in plan.plugins if implements(each.plugin, "tunekit_launch")]
    known = (each.obstacle(trick) for each in launchers if hasattr(each, "obstacle"))
    return next((why for why in known if why is not None), None)
