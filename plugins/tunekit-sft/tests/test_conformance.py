"""Supervised fine-tuning satisfies what every stage has to."""

from __future__ import annotations

from tunekit.testing import StageSuite, run_context, tiny_bundle
from tunekit.values import ModelBundle
from tunekit_lora import Lora
from tunekit_sft import Sft


class TestSft(StageSuite):
    plugin = Sft(epochs=4, learning_rate=5e-3, checkpoint={"every": 2})


class TestSftOfAnAdapter(StageSuite):
    plugin = Sft(epochs=4, learning_rate=5e-3, checkpoint={"every": 2})
    companions = (Lora(rank=4),)

    def bundle(self) -> ModelBundle:
        context = run_context(*self.companions)
        return context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context)
