"""Every option of `TrainConfig`, shown acting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tunekit.testing.options import shows
from tunekit.values import Mixing
from tunekit_train import AdamW, TrainConfig
from tunekit_train.estimate import padding_share
from tunekit_train.items import Items, Selection
from tunekit_train.order import BatchOrder, split
from tunekit_train.permuting import permutation
from tunekit_train.testing import CrossEntropy, random_items, tiny_llama, with_lora

RATE = 1e-2


def assert_same_weights(left: Any, right: Any, atol: float = 1e-6) -> None:
    for name, value in left.weights.items():
        message = partial("{} {}".format, name)
        torch.testing.assert_close(value, right.weights[name], rtol=1e-4, atol=atol, msg=message)


@shows("epochs")
def test_epochs_say_how_often_the_data_is_passed_over(run_training: Callable[..., Any]) -> None:
    assert len(run_training(epochs=2).steps("step")) == 6
    assert len(run_training(epochs=0.5).steps("step")) == 2


@shows("steps")
def test_steps_override_epochs(run_training: Callable[..., Any]) -> None:
    assert run_training(epochs=1, steps=5).steps("step") == [1, 2, 3, 4, 5]


@shows("learning_rate")
def test_learning_rate_is_what_the_schedule_falls_from(run_training: Callable[..., Any]) -> None:
    rates = run_training(learning_rate=RATE, schedule={"shape": "constant"}).values("learning_rate")
    assert rates == [RATE] * 3


@shows("weight_decay")
def test_weight_decay_shrinks_matrices_and_leaves_norms_alone(run_training: Callable[..., Any]) -> None:
    options = {"learning_rate": RATE, "steps": 1, "schedule": {"shape": "constant"}}
    plain, decayed = run_training(**options), run_training(weight_decay=0.5, **options)
    before = dict(tiny_llama().named_parameters())
    for name, value in plain.weights.items():
        shrink = RATE * 0.5 * before[name] if value.ndim >= 2 else 0.0
        torch.testing.assert_close(decayed.weights[name], value - shrink, rtol=1e-5, atol=1e-7)


class PlainSgd(AdamW):
    """An optimiser whose step is the gradient itself, so that clipping shows."""

    def tunekit_optimizer(self, named_parameters: Any, settings: Any, **_: Any) -> Any:
        return torch.optim.SGD([parameter for _, parameter in named_parameters], lr=settings.learning_rate)


@shows("max_grad_norm")
def test_max_grad_norm_bounds_the_step_and_reports_the_norm_before(run_training: Callable[..., Any]) -> None:
    def moved(limit: float) -> tuple[float, float]:
        trained = run_training(plugin=PlainSgd(), steps=1, learning_rate=1.0, max_grad_norm=limit, **constant)
        before = dict(tiny_llama().named_parameters())
        distances = [(value - before[name]).detach().norm() for name, value in trained.weights.items()]
        return float(torch.stack(distances).norm()), trained.values("grad_norm")[0]

    constant = {"schedule": {"shape": "constant"}}
    clipped, norm = moved(0.01)
    free, same_norm = moved(0.0)
    assert clipped == pytest.approx(0.01, rel=1e-3)
    assert free == pytest.approx(norm, rel=1e-3)
    assert norm == pytest.approx(same_norm)
    assert norm > 0.05


@shows("batch.rows", "batch.accumulation")
@pytest.mark.parametrize("padding", ["never", "always"])
@pytest.mark.parametrize("adapted", [False, True])
def test_micro_batches_take_the_step_of_one_big_batch(
    padding: str, adapted: bool, run_training: Callable[..., Any]
) -> None:
    def trained(rows: int, accumulation: int) -> Any:
        model = with_lora(tiny_llama()) if adapted else tiny_llama()
        batch = {"rows": rows, "accumulation": accumulation, "padding": padding}
        return run_training(model, plugin=PlainSgd(), steps=3, learning_rate=0.5, batch=batch)

    # The order of rows differs inside a step, not between steps: 12 items are one step of 12 x 1, 4 x 3 and 1 x 12.
    assert_same_weights(trained(12, 1), trained(4, 3))
    assert_same_weights(trained(12, 1), trained(1, 12))


def test_the_last_step_of_an_epoch_may_hold_fewer_micro_batches(run_training: Callable[..., Any]) -> None:
    trained = run_training(items=random_items(10), epochs=2, batch={"rows": 2, "accumulation": 3})
    tokens = trained.values("tokens")
    total = sum(item.tokens for item in random_items(10))
    assert [tokens[0] + tokens[1], tokens[2] + tokens[3]] == [total, total]


@shows("batch.padding")
def test_padding_changes_the_strategy_and_not_the_numbers(run_training: Callable[..., Any]) -> None:
    runs = {padding: run_training(learning_rate=RATE, batch={"padding": padding}) for padding in ("auto", "always")}
    assert runs["auto"].result.facts["strategy"] == "segments"
    assert runs["always"].result.facts["strategy"] == "padded"
    assert runs["auto"].values("loss") == pytest.approx(runs["always"].values("loss"), rel=1e-4)


def test_by_length_saves_padding_and_still_visits_every_item() -> None:
    items = random_items(200, longest=60)
    lengths = [item.tokens for item in items]

    def share(by_length: bool) -> float:
        batches = BatchOrder(lengths, 4, 0, by_length).batches(0)
        assert sorted(index for batch in batches for index in batch) == list(range(200))
        return padding_share([[items[index] for index in batch] for batch in batches])

    assert share(True) < 0.1 < 0.25 < share(False)


@shows("batch.by_length")
def test_by_length_reaches_the_engine(run_training: Callable[..., Any]) -> None:
    def tokens(by_length: bool) -> list[float]:
        items = random_items(12, longest=40)
        return sorted(run_training(items=items, batch={"by_length": by_length}).values("tokens"))

    assert tokens(True)[0] < tokens(False)[0]


@pytest.mark.parametrize("packing", ["none", "greedy"])
def test_without_shuffling_every_epoch_keeps_the_order_of_the_data(
    packing: str, run_training: Callable[..., Any]
) -> None:
    items = Items(random_items(11, longest=40), mixing=Mixing(shuffle=False))
    seen = SeesRows()
    batch = {"rows": 2, "max_length": 60, "packing": packing}
    run_training(items=items, objective=seen, epochs=2, batch=batch)
    assert seen.rows == [*range(1, 12), *range(1, 12)]


class SeesRows(CrossEntropy):
    """Remembers the rows it is given."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def sums(self, batch: Any, provided: Any) -> Any:
        self.rows += [sequence.row for sequence in batch.sequences]
        return super().sums(batch, provided)


def test_held_out_items_and_those_trained_on_are_views_of_all() -> None:
    training, held_out = split(1000, 0.1, seed=3)
    assert sorted([*training, *held_out]) == list(range(1000))
    assert len(held_out) == 100
    items = Items(random_items(1000))
    view = Selection(items, held_out)
    assert view[3] is items[int(held_out[3])]
    assert view.lengths.tolist() == [items[int(at)].tokens for at in held_out]


def test_batches_of_millions_of_items_are_made_as_they_are_asked_for() -> None:
    order, started = BatchOrder(np.full(2_000_000, 9), 4, seed=0), time.perf_counter()
    order.set_epoch(1)
    assert len(next(iter(order))) == 4
    assert len(order) == 500_000
    assert time.perf_counter() - started < 10


def test_an_order_is_the_same_on_every_machine() -> None:
    assert permutation(10, "7 epoch 0").tolist() == PERMUTED


PERMUTED = [2, 8, 9, 4, 7, 5, 6, 0, 1, 3]


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        return BatchOrder(list(range(20)), 4, seed).batches(epoch)

    assert batches(1, 0) == batches(1, 0)
    assert batches(1, 0) != batches(1, 1)
    assert batches(1, 0) != batches(2, 0)


def test_the_seed_changes_the_run(run_training: Callable[..., Any]) -> None:
    assert run_training(seed=1).values("loss") == run_training(seed=1).values("loss")
    assert run_training(seed=1).values("loss") != run_training(seed=2).values("loss")


SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "cosine_with_restarts": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "polynomial": lambda done: 1 - done,
    "constant_with_warmup": lambda done: 1.0,
}


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_schedule_rises_in_its_warm_up_and_then_follows_its_formula(
    shape: str, run_training: Callable[..., Any]
) -> None:
    schedule = {"shape": shape, "warmup_steps": 2}
    rates = run_training(steps=6, learning_rate=RATE, schedule=schedule).values("learning_rate")
    expected = [0.0, 0.5, *(SHAPES[shape](step / 4) for step in range(4))]
    assert rates == pytest.approx([RATE * factor for factor in expected], rel=1e-3, abs=1e-8)


def test_the_inverse_root_schedule_falls_with_the_root_of_the_step(run_training: Callable[..., Any]) -> None:
    schedule = {"shape": "inverse_sqrt", "warmup_steps": 4}
    rates = run_training(steps=9, learning_rate=RATE, schedule=schedule).values("learning_rate")
    assert rates[4:] == pytest.approx([RATE * math.sqrt(4 / step) for step in range(4, 9)])


@shows("schedule.warmup_ratio")
def test_the_warm_up_ratio_counts_in_steps_of_the_run(run_training: Callable[..., Any]) -> None:
    schedule = {"shape": "constant_with_warmup", "warmup_ratio": 0.5}
    rates = run_training(steps=8, learning_rate=RATE, schedule=schedule).values("learning_rate")
    assert rates == pytest.approx([RATE * min(1, step / 4) for step in range(8)])


@shows("checkpoint.every", "checkpoint.keep")
def test_checkpoints_are_written_every_so_many_steps_and_the_newest_kept(run_training: Callable[..., Any]) -> None:
    trained = run_training(steps=9, checkpoint={"every": 2, "keep": 2})
    assert trained.steps("saved") == [2, 4, 6, 8]
    assert sorted(path.name for path in (trained.folder / "checkpoints").iterdir()) == ["step-6", "step-8"]


def test_no_checkpoint_is_written_where_none_is_wanted(run_training: Callable[..., Any]) -> None:
    trained = run_training(steps=9, checkpoint={"every": 0})
    assert not list((trained.folder / "checkpoints").glob("step-*"))


def test_a_share_of_the_rows_is_held_out_and_measured_once_per_epoch(run_training: Callable[..., Any]) -> None:
    trained = run_training(items=random_items(20), epochs=2, evaluate={"share": 0.2})
    assert trained.steps("evaluated") == [4, 8]
    assert trained.result.facts["items_held_out"] == 4
    assert trained.result.facts["items_trained_on"] == 16


def test_evaluation_every_so_many_steps_and_at_the_end(run_training: Callable[..., Any]) -> None:
    trained = run_training(steps=5, evaluate={"share": 0.2, "every": 2})
    assert trained.steps("evaluated") == [2, 4, 5]


@shows("log.every")
def test_log_entries_average_over_their_steps_by_weight(run_training: Callable[..., Any]) -> None:
    each, thirds = run_training(steps=6), run_training(steps=6, log={"every": 3})
    assert thirds.steps("step") == [3, 6]
    assert thirds.values("tokens")[0] == sum(each.values("tokens")[:3])
    losses = each.values("loss")[:3]
    assert min(losses) < thirds.values("loss")[0] < max(losses)


@shows("log.trackers")
def test_trackers_are_fed_through_transformers(run_training: Callable[..., Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained = run_training(steps=3, log={"trackers": ["tensorboard"]})
    board = EventAccumulator(str(trained.folder / "tensorboard"))
    board.Reload()
    assert [point.value for point in board.Scalars("train/loss")] == pytest.approx(trained.values("loss"))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        TrainConfig(learning_rat=1e-4)


def test_every_option_is_described() -> None:
    def undescribed(config: Any, path: Path) -> list[str]:
        found = []
        for name, field in config.model_fields.items():
            inner = field.annotation
            found += [] if field.description else [str(path / name)]
            found += undescribed(inner, path / name) if hasattr(inner, "model_fields") else []
        return found

    assert not undescribed(TrainConfig, Path())
