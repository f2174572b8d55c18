"""The stage satisfies what every stage has to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import StageSuite, run_context, tiny_bundle
from tunekit.values import ModelBundle, Sample, StageContext
from tunekit_lora import Lora
from tunekit_ppo import Ppo


class Nothing(PluginConfig):
    """No options."""


class One(Plugin[Nothing]):
    """Values every answer at 1, so that values have something to learn."""

    @hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        """1."""
        return [1.0] * len(samples)


def stage(**options: Any) -> Ppo:
    return Ppo(
        epochs=4,
        learning_rate=5e-3,
        schedule={"shape": "constant"},
        checkpoint={"every": 2},
        batch={"rows": 4},
        rollout={"prompts": 8, "epochs": 1, "max_new_tokens": 6},
        kl={"coefficient": 0.1, "control": "adaptive", "target": 0.1, "horizon": 10},
        **options,
    )


class TestPpoOfAnAdapter(StageSuite):
    plugin = stage()
    companions = (Lora(rank=4), One())
    progress = "value_loss"

    def bundle(self) -> ModelBundle:
        context = run_context(*self.companions)
        return context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context)


class TestPpoOfAllWeights(StageSuite):
    plugin = stage(reference="copied", entropy_coefficient=0.01)
    companions = (One(),)
    progress = "value_loss"
