"""Parts of a user's own: a callback, a metric and a schedule from a class in a file that a recipe names."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import tunekit
from tunekit.testing import save_tiny_model

MINE = """
    from pydantic import Field
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
    from tunekit import Plugin, PluginConfig, hookimpl
    from tunekit_train import Metric, Sum, TokenLogProbs


    class Sure(Metric):
        def sums(self, batch, provided):
            found = provided[TokenLogProbs()].log_probs
            return {"sure": Sum(float(found.exp().sum()), len(found))}


    class StopAfter(TrainerCallback, ExportableState):
        def __init__(self, steps=0, seen=0):
            self.steps, self.seen = steps, seen

        def on_step_end(self, args, state, control, **_):
            self.seen += 1
            control.should_training_stop = self.seen >= self.steps
            return control

        def state(self):
            return {"args": {"steps": self.steps}, "attributes": {"seen": self.seen}}


    class Options(PluginConfig):
        stop_after: int = Field(4, ge=1, description="optimiser steps")


    class Mine(Plugin[Options]):
        @hookimpl
        def tunekit_train_schedule(self, factor, total_steps):
            return lambda step: 0.5 * factor(step) if step % 2 else 1 / total_steps

        @hookimpl
        def tunekit_train_metrics(self, metrics):
            return (*metrics, Sure())

        @hookimpl
        def tunekit_train_callbacks(self, callbacks):
            return (*callbacks, StopAfter(self.config.stop_after))
"""


def test_a_file_of_the_users_own_brings_a_schedule_a_metric_and_a_callback(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    (tmp_path / "mine.py").write_text(dedent(MINE))
    rows = [{"text": f"The number {number} is a number."} for number in range(10)]
    options: dict[str, Any] = {"steps": 8, "learning_rate": 0.01, "schedule": {"shape": "constant"}}
    options |= {"evaluate": {"share": 0.2, "every": 2, "metric": "sure", "higher_is_better": True}}
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {"rows": rows},
        "use": {f"{tmp_path}/mine.py:Mine": {"stop_after": 4}},
        "stages": [{"sft": {**options, "checkpoint": {"best": True}}}],
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    pipeline = tunekit.Pipeline.from_file(tmp_path / "recipe.json")
    steps = [(step.phase, step.hook, step.plugin) for step in pipeline.plan(estimate=False).steps]
    assert ("train sft", "tunekit_train_schedule", "mine") in steps
    pipeline.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "learning_rate" in line]
    assert [line["learning_rate"] for line in told] == pytest.approx([0.01 / 8, 0.005, 0.01 / 8, 0.005])
    assert all(0 < line["sure"] < 1 for line in told)
    evaluations = [line for line in lines if "eval_sure" in line and "train_loss_last" not in line]
    assert [line["step"] for line in evaluations] == [2, 4]
    assert all(0 < line["eval_sure"] < 1 for line in evaluations)
