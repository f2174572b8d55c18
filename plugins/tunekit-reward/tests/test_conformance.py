"""The stage satisfies what every stage has to."""

from __future__ import annotations

from tunekit.testing import FP32, StageSuite, preferences, run_context, tiny_bundle, tiny_model, tiny_tokenizer
from tunekit.values import Examples, ModelBundle
from tunekit_lora import Lora
from tunekit_reward import Reward


class TestReward(StageSuite):
    plugin = Reward(epochs=4, learning_rate=2e-3, checkpoint={"every": 2})

    def bundle(self) -> ModelBundle:
        """With its output head tied to its embedding: on its own the head has no part in a reward."""
        return ModelBundle(tiny_model(tie_word_embeddings=True), tiny_tokenizer(), "tiny", FP32)

    def data(self) -> Examples:
        return preferences()


class TestRewardOfAnAdapter(TestReward):
    companions = (Lora(rank=4),)

    def bundle(self) -> ModelBundle:
        context = run_context(*self.companions)
        return context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context)
