"""Schedules: the learning rates of a run are those of transformers' schedules, and what cannot be is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from tunekit.testing.options import shows
from tunekit_train import TrainConfig
from tunekit_train.schedules import length_problems, schedule_problems
from tunekit_train.testing import random_items

RATE, STEPS = 1e-2, 10
LOWEST, SIX = {"min_share": 0.1}, {"num_decay_steps": 6}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"shape": "linear", "warmup_steps": 3}, {}),
    ({"shape": "constant"}, {}),
    ({"shape": "constant_with_warmup", "warmup_steps": 3}, {}),
    ({"shape": "cosine", "warmup_steps": 3}, {}),
    ({"shape": "cosine", "cycles": 1.5}, {"num_cycles": 1.5}),
    ({"shape": "cosine_with_restarts", "cycles": 3}, {"num_cycles": 3}),
    ({"shape": "cosine_with_restarts"}, {"num_cycles": 1}),
    ({"shape": "cosine_with_min_lr", "min_rate": 1e-3}, {"min_lr": 1e-3}),
    ({"shape": "cosine_with_min_lr", "cycles": 1, **LOWEST}, {"num_cycles": 1, "min_lr_rate": 0.1}),
    ({"shape": "polynomial", "power": 2.0, "min_rate": 1e-3}, {"power": 2.0, "lr_end": 1e-3}),
    ({"shape": "polynomial", "power": 0.5, **LOWEST}, {"power": 0.5, "lr_end": 1e-3}),
    ({"shape": "inverse_sqrt", "warmup_steps": 2}, {}),
    ({"shape": "inverse_sqrt", "warmup_steps": 0}, {}),
    ({"shape": "inverse_sqrt", "warmup_steps": 2, "timescale": 5}, {"timescale": 5}),
    ({"shape": "warmup_stable_decay", "warmup_steps": 2}, {"num_decay_steps": 2}),
    ({"shape": "warmup_stable_decay", "warmup_steps": 2, "decay_steps": 5}, {"num_decay_steps": 5}),
    ({"shape": "warmup_stable_decay", "decay_ratio": 0.6, "decay": "linear"}, {**SIX, "decay_type": "linear"}),
    ({"shape": "warmup_stable_decay", "decay_ratio": 0.6, "decay": "1-sqrt"}, {**SIX, "decay_type": "1-sqrt"}),
    ({"shape": "warmup_stable_decay", "decay_steps": 6, "cycles": 1}, {"num_decay_steps": 6, "num_cycles": 1}),
    ({"shape": "warmup_stable_decay", "stable_steps": 4}, {"num_decay_steps": 6}),
    ({"shape": "warmup_stable_decay", "stable_ratio": 0.3}, {"num_decay_steps": 7}),
    (
        {"shape": "warmup_stable_decay", "warmup_steps": 2, "stable_steps": 2, "decay_steps": 4, **LOWEST},
        {"num_decay_steps": 4, "num_stable_steps": 2, "num_training_steps": None, "min_lr_ratio": 0.1},
    ),
]  # fmt: skip


def rates_of_transformers(shape: str, warm_up: int, options: dict[str, Any]) -> list[float]:
    """What transformers would train with, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    steps = options.pop("num_training_steps", STEPS)
    scheduler = get_scheduler(shape, optimizer, warm_up, steps, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@shows("schedule.shape", "schedule.warmup_steps", "schedule.cycles", "schedule.power", "schedule.min_rate")
@shows("schedule.min_share", "schedule.timescale", "schedule.decay", "schedule.decay_ratio", "schedule.decay_steps")
@shows("schedule.stable_ratio", "schedule.stable_steps")
@pytest.mark.parametrize(("schedule", "options"), CASES, ids=lambda given: "-".join(map(str, given.values())))
def test_a_run_has_the_rates_of_transformers(
    schedule: dict[str, Any], options: dict[str, Any], run_training: Callable[..., Any]
) -> None:
    rates = run_training(items=random_items(2), steps=STEPS, learning_rate=RATE, schedule=schedule).values(
        "learning_rate"
    )
    expected = rates_of_transformers(schedule["shape"], schedule.get("warmup_steps", 0), dict(options))
    assert rates == pytest.approx(expected, rel=1e-6, abs=1e-9)


def plateau_rates(run_training: Callable[..., Any], **options: Any) -> list[float]:
    """The rates of a run whose held-out loss falls, and never as far as the threshold asks, unless it is 0."""
    schedule = {"shape": "reduce_lr_on_plateau", "plateau_threshold": 0.9, "plateau_factor": 0.5, **options}
    items = {"items": random_items(1) * 3, "evaluate": {"share": 0.3, "every": 1}}
    run = run_training(**items, steps=7, learning_rate=RATE, batch={"rows": 2}, schedule=schedule)
    return [rate / RATE for rate in run.values("learning_rate")]


@shows(
    "schedule.plateau_factor", "schedule.plateau_patience", "schedule.plateau_cooldown", "schedule.plateau_threshold"
)
def test_a_plateau_lowers_the_rate_after_its_patience_and_not_while_it_cools_down(
    run_training: Callable[..., Any],
) -> None:
    # The first evaluation is the best; each later one is bad. The rate told is the one the step was taken with.
    assert plateau_rates(run_training, plateau_patience=1) == [1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert plateau_rates(run_training, plateau_patience=0) == [1, 1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert plateau_rates(run_training, plateau_patience=0, plateau_factor=0.1)[2] == pytest.approx(0.1)
    assert plateau_rates(run_training, plateau_patience=0, plateau_cooldown=2)[:6] == [1, 1, 0.5, 0.5, 0.5, 0.25]
    assert plateau_rates(run_training, plateau_patience=0, min_share=0.2)[-1] == 0.2
    assert plateau_rates(run_training, plateau_patience=0, plateau_threshold=0.0)[:3] == [1, 1, 1]


REFUSED = [
    ({"shape": "constant", "warmup_ratio": 0.1}, "schedule.warmup_ratio: is set, and the schedule constant does not"),
    ({"shape": "linear", "power": 2.0}, "schedule.power: .* leave it out, or use the shape polynomial"),
    ({"shape": "cosine", "min_share": 0.1}, "use the shape cosine_with_min_lr, polynomial"),
    ({"shape": "cosine_with_min_lr"}, "set min_rate or min_share"),
    ({"shape": "cosine_with_restarts", "cycles": 1.5}, "give a whole number"),
    ({"shape": "polynomial", "min_rate": 1e-3, "min_share": 0.1}, "both say the lowest rate"),
    ({"shape": "polynomial", "min_rate": 0.5}, "schedule.min_rate: is 0.5, and the highest learning rate is 0.0002"),
    ({"shape": "warmup_stable_decay", "decay": "linear", "cycles": 2}, "which has none"),
    ({"shape": "warmup_stable_decay", "stable_steps": 8, "decay_steps": 8}, "8 stable and 8 of decay are more than"),
    ({"shape": "linear", "warmup_steps": 11}, "schedule.warmup_steps: is 11, and the stage has 10 steps"),
    ({"shape": "reduce_lr_on_plateau"}, "set stages.0.sft.evaluate.share"),
]


@pytest.mark.parametrize(("schedule", "said"), REFUSED)
def test_what_a_shape_does_not_use_or_cannot_do_is_refused(schedule: dict[str, Any], said: str) -> None:
    import re

    config = TrainConfig(steps=STEPS, schedule=schedule)
    found = [str(problem) for problem in schedule_problems(config, "stages.0.sft")]
    assert any(re.search(said, problem) for problem in found), found


def test_every_case_that_trains_is_planned_without_a_problem() -> None:
    for schedule, _ in CASES:
        config = TrainConfig(learning_rate=RATE, steps=STEPS, schedule=schedule)
        assert not list(schedule_problems(config, "stages.0.sft")), schedule
    assert list(length_problems(TrainConfig(schedule={"warmup_steps": 4}), 3, "stages.0.sft"))
