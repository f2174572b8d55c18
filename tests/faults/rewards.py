"""Faults of plugins that value answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from faults.registry import fault, suite_of

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import RewardSuite
from tunekit.values import Sample, StageContext


class Nothing(PluginConfig):
    """No options."""


def valuing(value: Callable[[Sequence[Sample]], list[float]]) -> Any:
    class Faulty(Plugin[Nothing]):
        """Values answers."""

        @hookimpl
        def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
            return value(samples)

    return suite_of(RewardSuite, Faulty())


@fault(RewardSuite, "test_each_answer_has_a_finite_reward", "are finite numbers")
def a_reward_that_is_no_number_for_an_empty_answer():
    return valuing(lambda samples: [float(len(each.answer)) or float("nan") for each in samples])


@fault(RewardSuite, "test_a_reward_is_that_of_its_answer_alone", "the order of the answers matters")
def a_reward_for_coming_first():
    return valuing(lambda samples: [float(place) for place, _ in enumerate(samples)])


@fault(RewardSuite, "test_the_same_answers_have_the_same_rewards", "asked a second time")
def a_reward_that_grows():
    asked = count()

    def grown(samples: Sequence[Sample]) -> list[float]:
        return [float(next(asked))] * len(samples)

    return valuing(grown)
