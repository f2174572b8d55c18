"""Items in bins: each once, whole, and to the same loss and gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunekit.errors import PlanError
from tunekit.testing.options import shows
from tunekit_train import AdamW
from tunekit_train.order import BatchOrder
from tunekit_train.packing import Bins, best_fit, next_fit, pack
from tunekit_train.testing import random_items, tiny_llama

SIZE = 50
lengths_of_items = st.lists(st.integers(1, 70), max_size=200)


def members(bins: Bins) -> list[list[int]]:
    return [bins[number] for number in range(len(bins))]


@pytest.mark.parametrize("packing", ["none", "greedy", "best_fit"])
@given(lengths=lengths_of_items)
def test_every_item_is_in_one_bin_and_no_bin_is_too_long(packing: Any, lengths: list[int]) -> None:
    bins = pack(np.array(lengths, np.int64), packing, SIZE, seed=3)
    found = members(bins)
    assert sorted(item for each in found for item in each) == list(range(len(lengths)))
    assert all(found), "an empty bin"
    for each in found:
        assert sum(lengths[item] for item in each) <= SIZE or len(each) == 1
    assert bins.tokens(np.array(lengths, np.int64)).tolist() == [sum(lengths[item] for item in each) for each in found]


def slow_best_fit(lengths: list[int]) -> list[list[int]]:
    """Best fit decreasing, straight from its definition."""
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        rooms = [SIZE - sum(lengths[each] for each in bin_) for bin_ in bins]
        fitting = [room for room in rooms if room >= lengths[item]]
        if fitting:
            bins[rooms.index(min(fitting))].append(item)
        else:
            bins.append([item])
    return bins


@given(lengths=lengths_of_items)
def test_best_fit_decreasing_takes_the_fullest_bin_with_room(lengths: list[int]) -> None:
    found = best_fit(np.array(lengths, np.int64), np.arange(len(lengths)), SIZE)
    filled, expected = (
        sorted(sum(lengths[item] for item in each) for each in bins)
        for bins in (members(found), slow_best_fit(lengths))
    )
    assert filled == expected  # which of two bins with the same room is taken does not matter


@given(lengths=lengths_of_items)
def test_next_fit_keeps_the_order_and_closes_a_bin_only_when_it_must(lengths: list[int]) -> None:
    found = members(next_fit(np.array(lengths, np.int64), np.arange(len(lengths)), SIZE))
    assert [item for each in found for item in each] == list(range(len(lengths)))
    for before, after in pairwise(found):
        assert sum(lengths[item] for item in before) + lengths[after[0]] > SIZE


def test_efficiency_is_the_share_of_places_that_hold_a_token() -> None:
    lengths = np.array([30, 20, 40, 70])
    bins = Bins.of([[0, 1], [2], [3]])
    assert bins.efficiency(lengths, SIZE) == 160 / (50 + 50 + 70)


def test_best_fit_wastes_less_than_greedy() -> None:
    lengths = np.array([item.tokens for item in random_items(400, longest=30)])
    greedy, best = (pack(lengths, packing, SIZE, 0).efficiency(lengths, SIZE) for packing in ("greedy", "best_fit"))
    assert 0.7 < greedy < 0.9 < 0.98 < best <= 1


def test_bins_are_the_same_in_every_epoch_and_come_in_another_order() -> None:
    lengths = np.array([item.tokens for item in random_items(60)])
    bins = pack(lengths, "greedy", SIZE, seed=1)
    first, second = (BatchOrder(lengths, 1, 1, bins=bins).batches(epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == sorted(members(bins))
    assert first != second


class PlainSgd(AdamW):
    """An optimiser whose step is the gradient itself."""

    def tunekit_optimizer(self, named_parameters: Any, settings: Any, **_: Any) -> Any:
        return torch.optim.SGD([parameter for _, parameter in named_parameters], lr=settings.learning_rate)


def test_a_packed_batch_has_the_loss_and_gradients_of_its_items_one_by_one(run_training: Callable[..., Any]) -> None:
    def one_step(**batch: Any) -> Any:
        options = {"learning_rate": 1.0, "max_grad_norm": 0.0, "schedule": {"shape": "constant"}}
        return run_training(items=random_items(12), plugin=PlainSgd(), batch={"max_length": SIZE, **batch}, **options)

    packed, single = one_step(rows=12, packing="best_fit"), one_step(rows=1, accumulation=12)
    assert packed.result.facts["packing_efficiency"] > 0.5
    assert packed.steps("step") == single.steps("step") == [1]
    assert packed.values("loss") == pytest.approx(single.values("loss"), rel=1e-6)
    before = dict(tiny_llama().named_parameters())
    for name, value in packed.weights.items():
        gradient, expected = before[name] - value, before[name] - single.weights[name]
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@shows("batch.packing")
@pytest.mark.parametrize("packing", ["greedy", "best_fit"])
def test_packing_reaches_the_engine_and_each_item_is_seen_once_per_epoch(
    packing: str, run_training: Callable[..., Any]
) -> None:
    items = random_items(40)
    batch = {"rows": 2, "max_length": SIZE}
    plain = run_training(items=items, epochs=2, batch=batch)
    packed = run_training(items=items, epochs=2, batch={**batch, "packing": packing})
    assert sum(packed.values("tokens")) == sum(plain.values("tokens")) == 2 * sum(item.tokens for item in items)
    assert packed.result.facts["steps_per_epoch"] < plain.result.facts["steps_per_epoch"] == 20
    assert max(packed.values("tokens")) <= 2 * SIZE
    assert 0.6 < packed.result.facts["packing_efficiency"] <= 1
    assert plain.result.facts["packing_efficiency"] is None


def test_evaluation_of_packed_items_is_the_same_mean(run_training: Callable[..., Any]) -> None:
    def eval_loss(packing: str) -> float:
        batch = {"rows": 1, "max_length": SIZE, "packing": packing}
        options = {"steps": 1, "evaluate": {"share": 0.5}, "schedule": {"warmup_steps": 1}}
        return float(run_training(items=random_items(20), batch=batch, **options).result.metrics["eval_loss"])

    assert eval_loss("greedy") == pytest.approx(eval_loss("none"), rel=1e-5)


def test_a_padded_model_cannot_be_packed(run_training: Callable[..., Any]) -> None:
    model = tiny_llama()
    model.config.model_type = "unheard_of"
    with pytest.raises(PlanError, match=r"batch.packing: is best_fit, but the batches are padded: unheard_of"):
        run_training(model, batch={"packing": "best_fit"})
