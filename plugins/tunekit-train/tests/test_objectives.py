"""Objectives of every kind in the engine: their state, their coupling, and the faults that the suite finds."""

from __future__ import annotations

import inspect
import os
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunekit.errors import InterruptedRunError
from tunekit_train import (
    Batch,
    Item,
    Need,
    Objective,
    Provided,
    ReferenceLogProbs,
    SequenceValues,
    Sum,
    Sums,
    TokenLogProbs,
    TokenSequence,
)
from tunekit_train.suite import Bench
from tunekit_train.testing import CrossEntropy, ObjectiveSuite, random_items, tiny_llama, with_lora


def pairs(count: int) -> list[Item]:
    """Two answers to one prompt each."""
    dice = random.Random(4)
    items = []
    for row in range(count):
        prompt = [dice.randrange(3, 128) for _ in range(12)]
        answers = [[first, *(dice.randrange(3, 128) for _ in range(dice.randint(1, 5)))] for first in (3, 4)]
        sequences = [
            TokenSequence([*prompt, *answer], [0.0] * 12 + [1.0] * len(answer), row, f"rows.json, row {row}")
            for answer in answers
        ]
        items.append(Item(tuple(sequences)))
    return items


class Preference(Objective):
    """-log sigmoid of how much more the policy prefers the first of two answers than the reference does."""

    needs: tuple[Need[Any], ...] = (TokenLogProbs(), ReferenceLogProbs())

    def weight(self, batch: Batch) -> float:
        return len(batch.items)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        count = len(batch.sequences)
        rewards = provided[TokenLogProbs()].sums(count) - provided[ReferenceLogProbs()].sums(count)
        margins = rewards[0::2] - rewards[1::2]
        wins = Sum(float((margins > 0).sum()), len(margins))
        return Sums(-torch.nn.functional.logsigmoid(margins).sum(), {"accuracy": wins})


class Ranking(Objective):
    """-log sigmoid of how much more the first of two answers is worth."""

    needs: tuple[Need[Any], ...] = (SequenceValues(),)

    def weight(self, batch: Batch) -> float:
        return len(batch.items)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        values = provided[SequenceValues()]
        return Sums(-torch.nn.functional.logsigmoid(values[0::2] - values[1::2]).sum())


class Baseline(Objective):
    """Each sequence is pushed up by how much longer it is than the mean of the batch and the running mean."""

    couples_batch = True
    needs: tuple[Need[Any], ...] = (TokenLogProbs(),)

    def __init__(self) -> None:
        self.mean = torch.zeros(())

    def weight(self, batch: Batch) -> float:
        return len(batch.sequences)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        lengths = torch.tensor([float(len(sequence.ids)) for sequence in batch.sequences])
        advantage = 2 * lengths - lengths.mean() - self.mean
        loss = -(advantage * provided[TokenLogProbs()].sums(len(lengths))).sum() / 100
        return Sums(loss, {"length": Sum(float(lengths.sum()), len(lengths))})

    def observe(self, metrics: Mapping[str, Sum]) -> None:
        total, weight = metrics["length"]
        self.mean = 0.9 * self.mean + 0.1 * total / weight

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.mean = state["mean"]


class TestCrossEntropy(ObjectiveSuite):
    def objective(self) -> Objective:
        return CrossEntropy()


class TestPreference(ObjectiveSuite):
    def objective(self) -> Objective:
        return Preference()

    def items(self) -> list[Item]:
        return pairs(4)


class TestRanking(TestPreference):
    unmoved = frozenset({"value_head.default.offset"})

    def objective(self) -> Objective:
        return Ranking()


class TestBaseline(ObjectiveSuite):
    def objective(self) -> Objective:
        return Baseline()


class Averages(CrossEntropy):
    """Divides by the size of its batch."""

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        return Sums(super().sums(batch, provided).loss / len(batch.items))


class Mean(CrossEntropy):
    """Tells a mean as if it were a sum."""

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        sums = super().sums(batch, provided)
        return Sums(sums.loss, {"mean": Sum(float(sums.loss.detach()) / len(batch.items), 1.0)})


class Boasts(CrossEntropy):
    """Says that it couples the batch."""

    couples_batch = True


class Cuts(CrossEntropy):
    """Lets no gradient through."""

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        return Sums(super().sums(batch, provided).loss * 0)


class Weightless(CrossEntropy):
    """Gives every batch the same weight."""

    def weight(self, batch: Batch) -> float:
        return 1.0


class Rolls(CrossEntropy):
    """Rolls dice."""

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        return Sums(super().sums(batch, provided).loss * (1 + torch.rand(())))


class Forgets(Baseline):
    """Keeps nothing of its state."""

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass


class Drifts(Baseline):
    """Changes its state while it is asked."""

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        self.mean = self.mean + 1
        return super().sums(batch, provided)


class Counts(CrossEntropy):
    """Counts tokens, padding and all, from how the batch is laid out."""

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        sums = super().sums(batch, provided)
        return Sums(sums.loss, {f"of {len(batch.items)}": Sum(1.0, 1.0)})


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        (Averages, "test_micro_batches_add_up_to_one_batch"),
        (Mean, "test_micro_batches_add_up_to_one_batch"),
        (Boasts, "test_micro_batches_add_up_to_one_batch"),
        (Cuts, "test_all_that_trains_gets_a_gradient"),
        (Weightless, "test_the_weight_is_known_from_the_data_alone"),
        (Rolls, "test_the_same_batch_gives_the_same_sums"),
        (Drifts, "test_the_same_batch_gives_the_same_sums"),
        (Forgets, "test_the_state_comes_back_from_a_checkpoint_as_it_was"),
        (Counts, "test_metrics_are_sums_with_their_weights"),
    ],
)
def test_the_suite_finds_what_is_wrong(fault: type[Objective], test: str, tmp_path: Path) -> None:
    class Suite(ObjectiveSuite):
        def objective(self) -> Objective:
            return fault()

    suite = Suite()
    method = getattr(suite, test)
    given = (
        {"bench": Bench(fault(), suite.items(), suite.model(), tmp_path)}
        if "bench" in inspect.signature(method).parameters
        else {}
    )
    with pytest.raises(AssertionError):
        method(**given)


class Stops(Baseline):
    """Ctrl-C in the third step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        self.calls += 1
        if self.calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return super().sums(batch, provided)


def test_the_state_goes_on_bit_for_bit_where_a_run_was_interrupted(
    run_training: Callable[..., Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 6, "batch": {"rows": 2, "accumulation": 2}, "learning_rate": 1e-2}
    folder = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        run_training(with_lora(tiny_llama()), objective=Stops(), folder=folder, **options)
    resumed, whole = Baseline(), Baseline()
    again = run_training(with_lora(tiny_llama()), objective=resumed, folder=folder, resume=True, **options)
    once = run_training(with_lora(tiny_llama()), objective=whole, **options)
    assert again.steps("step") == [4, 5, 6]
    assert torch.equal(resumed.mean, whole.mean)
    assert all(torch.equal(each, again.weights[name]) for name, each in once.weights.items())


def test_the_state_changes_once_a_step_by_all_its_micro_batches_and_never_in_an_evaluation(
    run_training: Callable[..., Any],
) -> None:
    seen: list[Sum] = []

    class Watches(Baseline):
        def observe(self, metrics: Mapping[str, Sum]) -> None:
            seen.append(metrics["length"])
            super().observe(metrics)

    options = {"evaluate": {"share": 0.2, "every": 1}, "batch": {"rows": 2, "accumulation": 3}, "steps": 2}
    trained = run_training(items=random_items(15), objective=Watches(), **options)
    assert [value.weight for value in seen] == [6, 6]
    assert [value.total for value in seen] == trained.values("tokens")


@pytest.mark.parametrize(
    ("objective", "accumulation", "notes"),
    [
        (Baseline, 4, ["stages.0.own: the loss couples the items of a batch, so 4 micro-batches of 2 are not one batch "
                       "of 8"]),
        (Baseline, 1, []),
        (CrossEntropy, 4, []),
    ],
)  # fmt: skip
def test_a_plan_says_where_accumulation_is_not_the_same_as_a_larger_batch(
    objective: type[Objective], accumulation: int, notes: list[str]
) -> None:
    from tunekit_train import Stage, TrainConfig
    from tunekit_train.estimate import _notes

    class Own(Stage[TrainConfig]):
        def objective(self) -> Objective:
            return objective()

    config = TrainConfig(batch={"rows": 2, "accumulation": accumulation})
    planned: Any = SimpleNamespace(key="stages.0.own")
    assert list(_notes(Own(batch=config.batch), config, planned)) == notes


def test_the_record_says_that_the_batch_is_coupled(run_training: Callable[..., Any]) -> None:
    assert run_training(objective=Baseline(), steps=1).result.facts["couples_batch"] is True
