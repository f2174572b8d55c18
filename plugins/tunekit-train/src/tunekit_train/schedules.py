"""Learning-rate schedules: pure functions from the optimiser step to a share of the highest rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tunekit.errors import Problem

from .config import ScheduleConfig, TrainConfig

Factor = Callable[[int], float]
"""Steps already taken, from 0, to the share of `learning_rate` that the next step is taken with."""

_WARM_UP, _LOWEST = ("warmup_ratio", "warmup_steps"), ("min_rate", "min_share")
_PHASES = ("decay", "decay_ratio", "decay_steps", "stable_ratio", "stable_steps")
_PLATEAU = ("plateau_patience", "plateau_factor", "plateau_threshold", "plateau_cooldown")
USES: dict[str, tuple[str, ...]] = {
    "linear": _WARM_UP,
    "cosine": (*_WARM_UP, "cycles"),
    "cosine_with_restarts": (*_WARM_UP, "cycles"),
    "cosine_with_min_lr": (*_WARM_UP, "cycles", *_LOWEST),
    "polynomial": (*_WARM_UP, "power", *_LOWEST),
    "constant": (),
    "constant_with_warmup": _WARM_UP,
    "inverse_sqrt": (*_WARM_UP, "timescale"),
    "warmup_stable_decay": (*_WARM_UP, "cycles", *_PHASES, *_LOWEST),
    "reduce_lr_on_plateau": (*_PLATEAU, *_LOWEST),
}
"""The options that each shape uses."""


@dataclass(frozen=True)
class Span:
    """How long the parts of a schedule are, in optimiser steps, and the lowest share of the rate."""

    total: int
    warm_up: int
    stable: int
    decay: int
    lowest: float

    @classmethod
    def of(cls, config: TrainConfig, total: int) -> Span:
        """The parts of a stage of `total` steps."""
        schedule = config.schedule
        lowest = schedule.min_share or 0.0
        if schedule.min_rate is not None:
            lowest = schedule.min_rate / config.learning_rate
        warm_up = _steps(schedule.warmup_steps, schedule.warmup_ratio, total) or 0
        stable = _steps(schedule.stable_steps, schedule.stable_ratio, total)
        decay = _steps(schedule.decay_steps, schedule.decay_ratio, total)
        if decay is None:
            decay = int(0.2 * total) if stable is None else max(0, total - warm_up - stable)
        if stable is None:
            stable = max(0, total - warm_up - decay)
        return cls(total, warm_up, stable, decay, lowest)


def factor_of(config: TrainConfig, total: int) -> Factor:
    """The factor of a stage of `total` steps. It rises from 0 in the warm-up, warmup_stable_decay from the lowest.

    The formulas are those of transformers' schedules of the same names, which the tests hold them against;
    reduce_lr_on_plateau, which waits for evaluations, is 1 here.
    """
    span, schedule = Span.of(config, total), config.schedule
    after = _after_warm_up(schedule, span)
    if schedule.shape in ("constant", "reduce_lr_on_plateau"):
        return lambda step: 1.0
    start = span.lowest if schedule.shape == "warmup_stable_decay" else 0.0

    def factor(step: int) -> float:
        if step < span.warm_up:
            return start + (1 - start) * step / span.warm_up
        return max(0.0, after(step - span.warm_up))

    return factor


def _after_warm_up(schedule: ScheduleConfig, span: Span) -> Factor:
    """The factor so many steps after the warm-up."""
    rest, lowest = max(1, span.total - span.warm_up), span.lowest
    if schedule.shape == "linear":
        return lambda step: 1 - step / rest
    if schedule.shape == "polynomial":
        return lambda step: lowest + (1 - lowest) * max(0.0, 1 - step / rest) ** schedule.power
    if schedule.shape == "inverse_sqrt":
        scale = schedule.timescale or span.warm_up or 10_000
        return lambda step: (1 + step / scale) ** -0.5
    if schedule.shape == "cosine_with_restarts":
        falls = schedule.cycles or 1.0
        return lambda step: _cosine(falls * step / rest % 1.0) if step < rest else 0.0
    if schedule.shape in ("cosine", "cosine_with_min_lr"):
        falls = 2 * (schedule.cycles or 0.5)
        return lambda step: lowest + (1 - lowest) * _cosine(falls * step / rest)
    if schedule.shape == "warmup_stable_decay":
        return lambda step: 1.0 if step < span.stable else _decayed(schedule, span, step - span.stable)
    return lambda step: 1.0


def _decayed(schedule: ScheduleConfig, span: Span, step: int) -> float:
    if step >= span.decay:
        return span.lowest
    done = step / span.decay
    left = {"linear": 1 - done, "1-sqrt": 1 - math.sqrt(done)}.get(
        schedule.decay, _cosine(2 * (schedule.cycles or 0.5) * done)
    )
    return span.lowest + (1 - span.lowest) * left


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _steps(steps: int | None, ratio: float | None, total: int) -> int | None:
    if steps is None:
        return None if ratio is None else int(ratio * total)
    return steps


def schedule_problems(config: TrainConfig, key: str) -> Iterator[Problem]:
    """Options of the schedule that its shape does not use, or that contradict each other."""
    schedule, where = config.schedule, f"{key}.schedule"
    for option in sorted(schedule.model_fields_set - {"shape", *USES[schedule.shape]}):
        used_by = ", ".join(shape for shape, uses in USES.items() if option in uses)
        what = f"is set, and the schedule {schedule.shape} does not use it"
        yield Problem(f"{where}.{option}", what, f"leave it out, or use the shape {used_by}")
    yield from _lowest_problems(config, where)
    if schedule.shape == "cosine_with_restarts" and schedule.cycles is not None and schedule.cycles % 1:
        yield Problem(f"{where}.cycles", f"is {schedule.cycles:g}, and restarts are counted", "give a whole number")
    if schedule.decay != "cosine" and schedule.cycles is not None:
        yield Problem(f"{where}.cycles", f"is set, and the decay is {schedule.decay}, which has none", "leave it out")
    if schedule.shape == "reduce_lr_on_plateau" and not config.evaluate.share:
        what = "is reduce_lr_on_plateau, which goes by evaluations, and nothing is held out"
        yield Problem(f"{where}.shape", what, f"set {key}.evaluate.share")
    if config.steps is not None:
        yield from length_problems(config, config.steps, key)


def length_problems(config: TrainConfig, total: int, key: str) -> Iterator[Problem]:
    """Parts that do not fit into a stage of so many steps."""
    span, where = Span.of(config, total), f"{key}.schedule"
    if config.schedule.shape == "warmup_stable_decay" and span.warm_up + span.stable + span.decay > total:
        parts = f"{span.warm_up} steps of warm-up, {span.stable} stable and {span.decay} of decay"
        yield Problem(where, f"{parts} are more than the {total} of the stage", "shorten one of the parts")
    elif span.warm_up > total and "warmup_steps" in USES[config.schedule.shape]:
        what = f"is {span.warm_up}, and the stage has {total} steps"
        yield Problem(f"{where}.warmup_steps", what, "warm up for fewer, or train for more")


def _lowest_problems(config: TrainConfig, where: str) -> Iterator[Problem]:
    schedule = config.schedule
    if schedule.min_rate is not None and schedule.min_share is not None:
        yield Problem(f"{where}.min_share", "is set besides min_rate, and both say the lowest rate", "leave one out")
    if schedule.shape == "cosine_with_min_lr" and schedule.min_rate is None and schedule.min_share is None:
        yield Problem(f"{where}.shape", "is cosine_with_min_lr without a lowest rate", "set min_rate or min_share")
    if schedule.min_rate is not None and schedule.min_rate >= config.learning_rate:
        what = f"is {schedule.min_rate:g}, and the highest learning rate is {config.learning_rate:g}"
        yield Problem(f"{where}.min_rate", what, "lower it")
