"""Both stages satisfy what every stage has to."""

from __future__ import annotations

from tunekit.testing import StageSuite, run_context, tiny_bundle
from tunekit.testing.tiny import TEXT
from tunekit.values import Example, Examples, ModelBundle
from tunekit_lora import Lora
from tunekit_sft import Pretrain, Sft

STEPS = {"epochs": 4, "learning_rate": 5e-3, "checkpoint": {"every": 2}}


class TestSft(StageSuite):
    plugin = Sft(**STEPS)


class TestSftOfAnAdapter(StageSuite):
    plugin = Sft(**STEPS)
    companions = (Lora(rank=4),)

    def bundle(self) -> ModelBundle:
        context = run_context(*self.companions)
        return context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context)


class Documents(StageSuite):
    def data(self) -> Examples:
        return Examples.of(
            Example(row, f"a test, row {row}", text=text, source="a test") for row, text in enumerate(2 * TEXT, 1)
        )


class TestPretrain(Documents):
    plugin = Pretrain(**STEPS, block=26)


class TestPretrainAcrossDocuments(Documents):
    plugin = Pretrain(**STEPS, block=26, cross_documents=True)


del Documents
