"""Options of a stage that cannot work together, found at plan time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.errors import Problem
from tunekit.values import Plan

from .config import TrainConfig


def problems(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """What cannot be done with streamed data, which has no known length."""
    config: TrainConfig = plugin.config
    for stage in plan.stages:
        if stage.plugin.plugin is not plugin or not stage.mixing.streaming:
            continue
        if config.steps is None:
            yield Problem(f"{stage.key}.steps", "is not set, and streamed data has no known length", "set it")
        if config.evaluate.share:
            where, what = f"{stage.key}.evaluate.share", "needs to know all rows, and the data is streamed"
            yield Problem(where, what, "set it to 0, or stream nothing")
        if config.batch.by_length:
            where, what = f"{stage.key}.batch.by_length", "sorts all rows, and the data is streamed"
            yield Problem(where, what, "leave it out, or stream nothing")
