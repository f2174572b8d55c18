"""Micro-batches of as many examples as fit in so many tokens."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tunekit.errors import InterruptedRunError
from tunekit.recipe import Recipe
from tunekit.testing import FP32, fake_machine
from tunekit.testing.options import shows
from tunekit.values import Examples, Item, Mixing, Plan
from tunekit_train import Batch, Items, TrainConfig, train
from tunekit_train.budget import Sizes, TokenOrder
from tunekit_train.checks import problems
from tunekit_train.estimate import Sample
from tunekit_train.feeding import Room, StreamedBatches
from tunekit_train.streaming import Position, StreamedItems
from tunekit_train.testing import (
    CrossEntropy,
    WordEncoder,
    bundle,
    context,
    random_items,
    tiny_llama,
    word_examples,
)

ITEMS = random_items(300, longest=60)


def room(items: list[Item], padded: bool) -> int:
    """Places that these items take, counted one by one."""
    lengths = [len(sequence) for item in items for sequence in item.sequences]
    return len(lengths) * max(lengths) if padded else sum(lengths)


def pairs() -> list[Item]:
    return [Item((*one.sequences, *other.sequences)) for one, other in zip(ITEMS[::2], ITEMS[1::2], strict=True)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("items", [ITEMS, pairs()], ids=["sequences", "pairs"])
def test_every_epoch_visits_each_item_once_in_full_batches_within_the_budget(
    items: list[Item], by_length: bool, padded: bool
) -> None:
    order = TokenOrder(Sizes.of(items, padded), 240, 7, by_length)
    seen = []
    for epoch in (0, 1, 12):
        batches = order.batches(epoch)
        assert len(batches) == len(order)
        assert sorted(item for batch in batches for item in batch) == list(range(len(items)))
        taken = [room([items[item] for item in batch], padded) for batch in batches]
        assert max(taken) <= 240
        assert np.mean(taken) > (0.9 if by_length or not padded else 0.8) * 240 - (60 if items is not ITEMS else 20)
        seen.append([tuple(batch) for batch in batches])
    assert set(seen[0]) != set(seen[1]), "other items lie together in another epoch"


def test_the_batches_follow_from_seed_and_epoch_alone() -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        return TokenOrder(Sizes.of(ITEMS, padded=False), 100, seed).batches(epoch)

    assert batches(1, 3) == batches(1, 3)
    assert batches(1, 3) != batches(2, 3)


def test_similar_lengths_in_one_batch_waste_less_where_batches_are_padded() -> None:
    def count(by_length: bool) -> int:
        return len(TokenOrder(Sizes.of(ITEMS, padded=True), 240, 0, by_length))

    tokens = sum(item.tokens for item in ITEMS)
    assert tokens / 240 < count(True) < 0.8 * count(False)


def test_an_item_longer_than_the_budget_has_a_batch_of_its_own() -> None:
    items = [*random_items(6, shortest=5, longest=5), *random_items(1, shortest=50, longest=50)]
    for padded in (False, True):
        batches = TokenOrder(Sizes.of(items, padded), 20, 0).batches(0)
        assert [6] in batches
        assert all(len(batch) <= 4 for batch in batches)


def test_without_shuffling_the_order_of_the_data_is_kept() -> None:
    order = TokenOrder(Sizes.of(ITEMS, padded=False), 100, 0, shuffle=False)
    assert [item for batch in order.batches(4) for item in batch] == list(range(300))


class SeesBatches(CrossEntropy):
    """Remembers the batches it is given, and is interrupted in the one of number `stop`."""

    def __init__(self, stop: int = -1) -> None:
        self.seen: list[tuple[bool, int]] = []
        self.stop = stop

    def sums(self, batch: Batch, provided: Any) -> Any:
        self.seen.append((torch.is_grad_enabled(), room(list(batch.items), padded=False)))
        if len(self.seen) == self.stop:
            os.kill(os.getpid(), signal.SIGINT)
        return super().sums(batch, provided)


@shows("batch.tokens")
def test_training_and_evaluation_keep_to_the_budget_and_a_resumed_run_reaches_the_same_bits(
    run_training: Callable[..., Any], tmp_path: Path
) -> None:
    batch = {"tokens": 50, "max_length": 40, "accumulation": 2}
    items = random_items(30, longest=40)
    options = {"items": items, "epochs": 2, "batch": batch, "evaluate": {"share": 0.2}, "learning_rate": 1e-2}
    whole = SeesBatches()
    expected = run_training(objective=whole, folder=tmp_path / "whole", **options)
    assert 40 < max(taken for _, taken in whole.seen) <= 50
    assert sum(taken for learning, taken in whole.seen if learning) == sum(expected.values("tokens"))
    assert not all(learning for learning, _ in whole.seen), "evaluations keep to it too"
    with pytest.raises(InterruptedRunError):
        run_training(objective=SeesBatches(9), folder=tmp_path / "run", **options)
    resumed = run_training(folder=tmp_path / "run", resume=True, **options)
    steps = len(resumed.values("loss"))
    assert 0 < steps < len(expected.values("loss"))
    assert resumed.values("loss") == expected.values("loss")[-steps:]
    assert all(torch.equal(value, expected.weights[name]) for name, value in resumed.weights.items())


def test_a_padded_model_counts_padding(run_training: Callable[..., Any]) -> None:
    class Padded(CrossEntropy):
        largest = 0

        def sums(self, batch: Batch, provided: Any) -> Any:
            if len(batch.items) > 1:
                self.largest = max(self.largest, room(list(batch.items), padded=True))
            return super().sums(batch, provided)

    objective = Padded()
    batch = {"tokens": 120, "max_length": 60, "padding": "always"}
    run_training(items=ITEMS[:40], objective=objective, batch=batch, steps=8)
    assert 90 < objective.largest <= 120


@pytest.mark.parametrize("padded", [False, True])
def test_a_stream_fills_the_budget_in_the_order_in_which_it_comes(padded: bool) -> None:
    data = Examples.of(word_examples(60), "data", Mixing(streaming=True, shuffle=False))
    items = StreamedItems(data, WordEncoder(), lambda rows: iter(rows), 0, "words")
    batches = StreamedBatches(items, Room(1, 64, padded), Position())
    made = [batches[number].batch for number in range(5)]
    assert [each.sequences[0].row for batch in made for each in batch.items] == list(
        range(1, 1 + sum(len(batch.items) for batch in made))
    )
    for batch, following in itertools.pairwise(made):
        assert room(list(batch.items), padded) <= 64 < room([*batch.items, following.items[0]], padded)


def test_a_stream_is_trained_under_the_budget(tmp_path: Path) -> None:
    data = Examples.of(word_examples(60), "data", Mixing(streaming=True))
    items = StreamedItems(data, WordEncoder(), lambda rows: iter(rows), 7, "words")
    objective = SeesBatches()
    config = TrainConfig(steps=3, batch={"tokens": 64, "max_length": 32})
    train(objective, items, bundle(tiny_llama()), config, context(tmp_path))
    assert len(objective.seen) == 3
    assert all(40 < taken <= 64 for _, taken in objective.seen)


def test_the_estimate_knows_the_budget() -> None:
    config = TrainConfig(batch={"tokens": 240, "max_length": 60})
    sample = Sample(ITEMS, config, 3000, seed=0)
    tokens = 10 * sum(item.tokens for item in ITEMS)
    assert tokens / 240 < sample.steps < 1.2 * tokens / 240
    assert 200 < sum(item.tokens for item in sample.largest) <= 240
    padded = Sample(ITEMS, config, 3000, seed=0, padded=True)
    assert padded.steps > 1.2 * sample.steps
    assert room(padded.largest, padded=True) <= 240


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"tokens": 2048}, []),
        ({"tokens": 2048, "by_length": True}, []),
        ({"tokens": 2048, "rows": 4}, ["rows: is 4, and batch.tokens says already how much a micro-batch holds"]),
        ({"tokens": 2048, "packing": "greedy"}, ["packing: is greedy, which makes bins of max_length tokens"]),
        ({"tokens": 512}, ["tokens: is 512, and one sequence may have 1024"]),
    ],
)
def test_what_contradicts_a_budget_is_refused_when_the_run_is_planned(batch: Any, expected: list[str]) -> None:
    plugin = SimpleNamespace(config=TrainConfig(batch=batch), kinds=frozenset({"text"}))
    stage = SimpleNamespace(plugin=SimpleNamespace(plugin=plugin), mixing=Mixing(), key="stages.0.sft")
    stages: Any = (stage,)
    plan = Plan(Recipe("tiny"), fake_machine(), FP32, (), (), stages)
    found = [str(problem) for problem in problems(plugin, plan)]
    assert len(found) == len(expected)
    assert all(found[0].startswith(f"stages.0.sft.batch.{text}") for text in expected)


def test_items_in_memory_are_measured_like_any_others() -> None:
    assert Sizes.of(Items(ITEMS), padded=False).tokens.tolist() == [item.tokens for item in ITEMS]
