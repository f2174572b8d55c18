"""The stages satisfy what every stage has to."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import StageSuite
from tunekit.values import Sample, StageContext
from tunekit_trl import Grpo, Rloo


class Nothing(PluginConfig):
    """No options."""


class Letters(Plugin[Nothing]):
    """Rewards the share of letters."""

    @hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        return [sum(map(str.isalpha, each.answer)) / (len(each.answer) or 1) for each in samples]


class TestGrpo(StageSuite):
    plugin = Grpo(
        learning_rate=2e-2,
        num_generations=16,
        batch={"rows": 16},
        max_completion_length=4,
        schedule={"shape": "constant"},
        checkpoint={"every": 2},
    )
    companions = (Letters(),)
    progress, rising = "reward", True


class TestRloo(StageSuite):
    plugin = Rloo(
        epochs=3,
        learning_rate=4e-2,
        num_generations=4,
        batch={"rows": 16},
        max_completion_length=3,
        schedule={"shape": "constant"},
        checkpoint={"every": 2},
    )
    companions = (Letters(),)
    progress, rising = "reward", True
