"""The four stages satisfy what every stage has to."""

from __future__ import annotations

from tunekit.testing import StageSuite, preferences, run_context, tiny_bundle
from tunekit.values import Examples, ModelBundle
from tunekit_dpo import Cpo, Dpo, Orpo, Simpo
from tunekit_lora import Lora

STEPS = {"epochs": 4, "learning_rate": 2e-3, "checkpoint": {"every": 2}}


class Pairs(StageSuite):
    def data(self) -> Examples:
        return preferences()


class TestDpo(Pairs):
    plugin = Dpo(**STEPS)


class TestDpoOfAnAdapter(Pairs):
    plugin = Dpo(**STEPS)
    companions = (Lora(rank=4),)

    def bundle(self) -> ModelBundle:
        context = run_context(*self.companions)
        return context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context)


class TestDpoWithARunningMean(Pairs):
    plugin = Dpo(**STEPS, loss={"bco": 1.0, "sigmoid": 0.5}, bco_decay=0.5)


class TestOrpo(Pairs):
    plugin = Orpo(**STEPS)


class TestSimpo(Pairs):
    plugin = Simpo(**STEPS)


class TestCpo(Pairs):
    plugin = Cpo(**STEPS)


del Pairs
