"""Rewards: planned for stages that ask for them, called on every plugin that answers, with the row they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tunekit.data import open_examples
from tunekit.errors import PlanError
from tunekit.hooks import hookimpl
from tunekit.local import LocalPlugin
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import RewardSuite, calls_of, plan_for, stage_context
from tunekit.values import BadRow, Example, Message, Row, Rows, Sample, Source, StageContext


class Nothing(PluginConfig):
    """No options."""


class Length(Plugin[Nothing]):
    """Values long answers."""

    @hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        """Characters."""
        return [float(len(sample.answer)) for sample in samples]


class Brief(Length):
    """Values short answers."""

    @hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        """Characters that are not there."""
        return [-float(len(sample.answer)) for sample in samples]


class Asking(Plugin[Nothing]):
    """A stage that learns from its own answers."""

    provides = frozenset({"stage.rewarded"})

    @hookimpl
    def tunekit_train_stage(self, bundle: Any, data: Any, context: StageContext) -> Any:
        """Never run here."""


class Deaf(Asking):
    """A stage that does not."""

    provides = frozenset()


SAMPLE = Sample((Message("system", "Be brief."), Message("user", "Two and two?")), "4", reference="four")


def test_every_plugin_that_answers_is_asked_and_named(tmp_path: Path) -> None:
    context = stage_context(Length(), Asking(), Brief(), folder=tmp_path)
    found = [(planned.name, rewards) for planned, rewards in context.calls.each(
        "tunekit_reward", samples=(SAMPLE,), context=context)]  # fmt: skip
    assert found == [("length", [1.0]), ("brief", [-1.0])]


def test_a_plan_tells_who_values_the_answers() -> None:
    steps = [(step.phase, step.plugin) for step in plan_for(Length(), Asking()).steps if step.hook == "tunekit_reward"]
    assert len(steps) == 1


def test_a_reward_that_nobody_asks_for_is_refused() -> None:
    with pytest.raises(PlanError, match="no stage that it belongs to learns from its own answers"):
        plan_for(Length(), Deaf())


def test_a_sample_reads_as_a_conversation() -> None:
    assert SAMPLE.question == "Two and two?"
    assert SAMPLE.conversation[-1] == Message("assistant", "4")


def test_a_class_in_a_file_passes_the_suite_of_rewards(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        dedent("""
        from collections.abc import Sequence
        from pydantic import Field
        from tunekit import Plugin, PluginConfig, hookimpl
        from tunekit.values import Sample, StageContext

        class Options(PluginConfig):
            weight: float = Field(1.0, description="what it weighs in the sum of all rewards")

        class Mine(Plugin[Options]):
            @hookimpl
            def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
                return [self.config.weight * (sample.reference in sample.answer) for sample in samples]
        """)
    )
    kind = LocalPlugin(tmp_path / "mine.py", "Mine").load()

    class TestMine(RewardSuite):
        plugin = kind(weight=2.0)

    suite = TestMine()
    suite.test_each_answer_has_a_finite_reward(tmp_path)
    suite.test_a_reward_is_that_of_its_answer_alone(tmp_path)
    assert suite.rewards(suite.samples, tmp_path) == [2.0, 0.0, 0.0, 0.0]


class Reader(Plugin[Nothing]):
    """Rows of which one cannot be read."""

    @hookimpl
    def tunekit_read_data(self, source: Source) -> Rows:
        """Three rows."""
        rows = (Row(1, "rows, row 1", {"text": "a", "n": 1}), BadRow(2, "rows, row 2", "torn"),
                Row(3, "rows, row 3", {"text": "c", "n": 3}))  # fmt: skip
        return Rows(source, ("text", "n"), lambda: iter(rows), "0")


class Format(Plugin[Nothing]):
    """Looks at the head of the rows first, and reads one row ahead."""

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Any:
        """Documents."""
        next(iter(rows.read()))
        return (Example(row.number, row.where, text=row.values["text"]) for row in list(rows.read()))


def test_an_example_knows_the_columns_of_its_row() -> None:
    source = Source(rows=(), bad_rows="drop")
    examples = open_examples(calls_of(Reader(), Format()), [source])
    assert [(example.row, example.columns) for example in examples] == [
        (1, {"text": "a", "n": 1}),
        (3, {"text": "c", "n": 3}),
    ]
