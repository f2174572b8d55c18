"""What a reward has to satisfy: a finite number for each answer, that of this answer alone, the same each time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from ..values import Message, Sample
from .plugins import PluginSuite
from .runs import stage_context


def _sample(number: int, question: str, answer: str, finish: str = "end") -> Sample:
    prompt = (Message("system", "You answer briefly."), Message("user", question))
    row = {"question": question, "answer": "five", "number": number}
    return Sample(prompt, answer, finish, "five", row, number, f"a test, row {number}", "a test")  # type: ignore[arg-type]


SAMPLES = (
    _sample(1, "What is two and three?", "Two and three is five."),
    _sample(2, "What is four and five?", ""),
    _sample(3, "Which river flows through the town?", "The river is called " * 20, "length"),
    _sample(4, "Wer fragt?", "  Žďár \u6771\u4eac 🌊\n\n{'a': 1} \\boxed{5} <|im_end|> "),
)
"""Answers of every kind a model gives: right, empty, endless, and in other letters."""


class RewardSuite(PluginSuite):
    """For plugins that value answers. `samples` may be replaced where the plugin reads columns of its own."""

    samples: ClassVar[Sequence[Sample]] = SAMPLES

    def rewards(self, samples: Sequence[Sample], folder: Path) -> list[float]:
        """What the plugin alone, made anew, says of them."""
        plugin = self.make()
        context = stage_context(plugin, *self.companions, folder=folder)
        (found,) = (each for planned, each in context.calls.each("tunekit_reward", samples=samples, context=context)
                    if planned.plugin is plugin)  # fmt: skip
        return list(found)

    def test_each_answer_has_a_finite_reward(self, tmp_path: Path) -> None:
        """Whatever the model says: nothing, an endless answer, other letters. No answers have no rewards."""
        found = self.rewards(self.samples, tmp_path)
        assert len(found) == len(self.samples), f"{len(found)} rewards for {len(self.samples)} answers"
        assert all(math.isfinite(value) for value in found), f"not all of {found} are finite numbers"
        assert self.rewards((), tmp_path) == []

    def test_a_reward_is_that_of_its_answer_alone(self, tmp_path: Path) -> None:
        """Other company, or another order, changes nothing."""
        together = self.rewards(self.samples, tmp_path)
        backwards = self.rewards(self.samples[::-1], tmp_path)
        alone = [self.rewards((sample,), tmp_path)[0] for sample in self.samples]
        assert backwards[::-1] == pytest.approx(together, rel=1e-4, abs=1e-5), "the order of the answers matters"
        assert alone == pytest.approx(together, rel=1e-4, abs=1e-5), "the other answers matter"

    def test_the_same_answers_have_the_same_rewards(self, tmp_path: Path) -> None:
        """A run that is resumed asks again."""
        plugin = self.make()
        context = stage_context(plugin, *self.companions, folder=tmp_path)

        def ask() -> list[list[float]]:
            calls = context.calls.each("tunekit_reward", samples=self.samples, context=context)
            return [list(found) for _, found in calls]

        assert ask() == ask(), "asked a second time it says something else"
