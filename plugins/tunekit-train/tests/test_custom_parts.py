"""Callbacks, metrics and schedules that plugins bring to a stage."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit.errors import TunekitError
from tunekit_train import AdamW, Metric, Sum, Sums, TokenLogProbs
from tunekit_train.testing import CrossEntropy, random_items


class Twice(Metric):
    """Tells what another tells."""

    def sums(self, batch: Any, provided: Any) -> dict[str, Sum]:
        assert TokenLogProbs() in provided
        return {"twice": Sum(2.0, 1.0)}


class Brings(AdamW):
    """Brings what it is given."""

    def __init__(self, hook: str, *parts: Any) -> None:
        super().__init__()
        setattr(self, hook, lambda **given: (*parts,))


def test_a_metric_is_a_mean_over_all_micro_batches(run_training: Any) -> None:
    trained = run_training(
        plugin=Brings("tunekit_train_metrics", Twice()), steps=2, batch={"rows": 1, "accumulation": 3}
    )
    assert trained.values("twice") == [2.0, 2.0]


class Halving(AdamW):
    """Halves the rate of every second step."""

    def tunekit_train_schedule(self, factor: Any, total_steps: int, context: Any) -> Any:
        assert (total_steps, context.name) == (6, "sft")
        return lambda step: factor(step) / (1 + step % 2)


@pytest.mark.parametrize("shape", ["linear", "cosine", "inverse_sqrt"])
def test_a_schedule_is_made_of_the_one_that_the_stage_has(shape: str, run_training: Any) -> None:
    options = {"steps": 6, "items": random_items(2), "schedule": {"shape": shape, "warmup_steps": 2}}
    plain, halved = (run_training(plugin=each, **options).values("learning_rate") for each in (AdamW(), Halving()))
    assert halved == pytest.approx([rate / (1 + step % 2) for step, rate in enumerate(plain)])


def test_two_metrics_of_one_name_are_refused(run_training: Any) -> None:
    with pytest.raises(TunekitError, match="Twice tells twice, which is told already; call it by another name"):
        run_training(plugin=Brings("tunekit_train_metrics", Twice(), Twice()), steps=1)


def test_what_is_no_callback_is_refused(run_training: Any) -> None:
    with pytest.raises(TunekitError, match="tunekit_train_callbacks returned a str; return objects whose class"):
        run_training(
            plugin=Brings("tunekit_train_callbacks", "stop"), steps=1, items=random_items(3), objective=CrossEntropy()
        )


class Halved(CrossEntropy):
    """Half of what another trains for."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective

    def sums(self, batch: Any, provided: Any) -> Sums:
        return Sums(self.objective.sums(batch, provided).loss / 2)


class Halves(AdamW):
    """Halves what a stage trains for."""

    def tunekit_train_objective(self, objective: Any, context: Any) -> Halved:
        assert context.name == "sft"
        return Halved(objective)


def test_a_plugin_changes_what_a_stage_trains_for(run_training: Any) -> None:
    halved, whole = (run_training(plugin=plugin, steps=1).values("loss") for plugin in (Halves(), AdamW()))
    assert halved == pytest.approx([loss / 2 for loss in whole])
