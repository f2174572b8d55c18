"""The best evaluation, early stopping, and when it is evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunekit.errors import PlanError
from tunekit.testing.options import shows
from tunekit_train import Batch, Provided, Sum, Sums, TrainConfig
from tunekit_train.checks import option_problems
from tunekit_train.testing import CrossEntropy, random_items

HELD_OUT = {"share": 0.2, "every": 1}


class Scripted(CrossEntropy):
    """Tells scripted values at its evaluations, one for each, and learns as ever."""

    def __init__(self, values: list[float], calls: int = 0) -> None:
        self.script, self.calls = values, calls

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        sums = super().sums(batch, provided)
        if torch.is_grad_enabled():
            return sums
        value, self.calls = self.script[self.calls], self.calls + 1
        return Sums(sums.loss, {"score": Sum(value, 1.0)})


def scripted(run_training: Callable[..., Any], values: list[float], **options: Any) -> Any:
    """A run of six steps, evaluated after each; the first value is for the look at what there will be."""
    evaluate = {**HELD_OUT, "metric": "score", "higher_is_better": True, **options.pop("evaluate", {})}
    batch = {"rows": 8}
    objective = Scripted([0.0, *values])
    settings = {"steps": 6, "learning_rate": 1e-2, "batch": batch, "evaluate": evaluate, **options}
    return run_training(items=random_items(10), objective=objective, **settings)


def same_weights(left: Any, right: Any) -> bool:
    return all(torch.equal(value, right.weights[name]) for name, value in left.weights.items())


@shows("checkpoint.best", "evaluate.metric", "evaluate.higher_is_better")
def test_the_stage_ends_with_the_weights_of_the_best_evaluation(run_training: Callable[..., Any]) -> None:
    constant = {"schedule": {"shape": "constant"}, "learning_rate": 1e-2, "batch": {"rows": 8}}
    values = [0.1, 0.9, 0.3, 0.2, 0.9, 0.4]
    highest = scripted(run_training, values, checkpoint={"best": True, "every": 1}, **constant)
    two_steps = run_training(items=random_items(10), steps=2, evaluate={"share": 0.2}, **constant)
    one_step = run_training(items=random_items(10), steps=1, evaluate={"share": 0.2}, **constant)
    assert same_weights(highest, two_steps)
    assert not same_weights(two_steps, one_step)
    assert highest.result.facts["best"] == {"metric": "score", "value": 0.9, "step": 2}
    assert highest.result.metrics["eval_score"] == 0.9
    assert not (highest.folder / "best").exists()
    (saved,) = [artefact.path for artefact in highest.result.artefacts if artefact.kind == "model"]
    kept = load_file(saved / "model.safetensors")
    assert all(torch.equal(value, two_steps.weights[name]) for name, value in kept.items())
    lowest = scripted(run_training, values, checkpoint={"best": True}, evaluate={"higher_is_better": False}, **constant)
    assert same_weights(lowest, one_step)


@shows("early_stopping.patience", "early_stopping.improvement")
def test_a_stage_ends_when_nothing_has_improved_for_its_patience(run_training: Callable[..., Any]) -> None:
    def steps(values: list[float], **stopping: Any) -> list[int]:
        trained = scripted(run_training, values, early_stopping=stopping, log={"every": 4})
        stopped = trained.result.facts.get("stopped_early_at")
        assert stopped == (None if trained.steps("finished") == [6] else trained.steps("finished")[0])
        assert trained.result.facts["tokens"] == sum(trained.values("tokens"))
        return trained.steps("evaluated")

    rising = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert steps(rising, patience=1) == [1, 2, 3, 4, 5, 6]
    assert steps([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], patience=2) == [1, 2, 3]
    assert steps([0.5, 0.4, 0.6, 0.2, 0.1, 0.0], patience=2) == [1, 2, 3, 4, 5]
    assert steps([0.5, float("nan"), 0.4, 0.9, 0.9, 0.9], patience=2) == [1, 2, 3]
    assert steps(rising, patience=2, improvement=0.25) == [1, 2, 3]
    assert steps(rising, patience=2, improvement=0.15) == [1, 2, 3, 4, 5, 6]


@shows("evaluate.every_ratio", "evaluate.at_start", "evaluate.every", "evaluate.share")
def test_it_is_evaluated_as_often_as_asked_and_before_the_first_step(run_training: Callable[..., Any]) -> None:
    def evaluated(**evaluate: Any) -> list[int]:
        return run_training(items=random_items(10), steps=10, evaluate={"share": 0.2, **evaluate}).steps("evaluated")

    assert evaluated(every_ratio=0.3) == [3, 6, 9, 10]
    assert evaluated(every=4) == [4, 8, 10]
    assert evaluated(every=5, at_start=True) == [0, 5, 10]
    assert run_training(items=random_items(10), steps=2).steps("evaluated") == []


def test_what_was_measured_before_the_first_step_is_not_the_best(run_training: Callable[..., Any]) -> None:
    at_start = {"evaluate": {"at_start": True}, "checkpoint": {"best": True}}
    trained = scripted(run_training, [9.9, 0.1, 0.2, 0.3, 0.2, 0.1, 0.0], **at_start)
    assert trained.result.facts["best"] == {"metric": "score", "value": 0.3, "step": 3}


def test_a_metric_that_nothing_tells_is_found_before_the_first_step(run_training: Callable[..., Any]) -> None:
    with pytest.raises(PlanError, match=r"evaluate.metric: is scor, which no evaluation .*; did you mean score\?"):
        scripted(run_training, [0.1] * 6, evaluate={"metric": "scor"}, checkpoint={"best": True})


REFUSED = [
    ({"checkpoint": {"best": True}}, "checkpoint.best: goes by evaluations, and nothing is held out"),
    ({"early_stopping": {"patience": 2}}, "early_stopping.patience: goes by evaluations"),
    ({"evaluate": {"every": 3}}, "evaluate.every: is set, and nothing is held out"),
    ({"evaluate": {"share": 0.1, "every": 3, "every_ratio": 0.5}}, "every_ratio: is set besides every"),
    ({"evaluate": {"share": 0.1}, "early_stopping": {"improvement": 0.1}}, "improvement: is set without patience"),
    ({"evaluate": {"share": 0.1, "metric": "accuracy"}}, "evaluate.metric: is set, and nothing goes by it"),
    (
        {"evaluate": {"share": 0.1, "metric": "accuracy"}, "checkpoint": {"best": True}},
        "whether a higher accuracy is better is not known",
    ),
    ({"evaluate": {"share": 0.1, "higher_is_better": True}, "checkpoint": {"best": True}}, "the loss is to fall"),
    ({"compute": {"compile_backend": "eager"}}, "compute.compile_backend: is set, and nothing is compiled"),
    ({"log": {"trackers": ["tensorbord"]}}, "did you mean tensorboard"),
    ({"log": {"trackers": ["clearml"]}}, "clearml needs clearml, not installed; `pip install clearml`"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    found = [str(problem) for problem in option_problems(TrainConfig(**options), "stages.0.sft")]
    assert any(re.search(said, problem) for problem in found), found
