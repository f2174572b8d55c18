"""The stage satisfies what every stage has to."""

from __future__ import annotations

from tunekit.testing import StageSuite, labelled, run_context, tiny_bundle
from tunekit.values import Examples, ModelBundle
from tunekit_kto import Kto
from tunekit_lora import Lora


class TestKto(StageSuite):
    plugin = Kto(epochs=4, learning_rate=2e-3, checkpoint={"every": 2})

    def data(self) -> Examples:
        return labelled()


class TestKtoOfAnAdapter(TestKto):
    companions = (Lora(rank=4),)

    def bundle(self) -> ModelBundle:
        context = run_context(*self.companions)
        return context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context)


class TestKtoWithoutAKlTerm(TestKto):
    plugin = Kto(epochs=4, learning_rate=2e-3, checkpoint={"every": 2}, loss="apo_zero_unpaired")
