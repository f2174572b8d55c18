"""The losses do what the engine relies on: sums add up, and layouts do not matter."""

from __future__ import annotations

from tunekit.values import Item
from tunekit_sft import Sft
from tunekit_train import Objective
from tunekit_train.testing import ObjectiveSuite, random_items


class TestCrossEntropy(ObjectiveSuite):
    stage = Sft()

    def objective(self) -> Objective:
        return self.stage.objective()

    def items(self) -> list[Item]:
        return random_items(6)


class TestDynamicLoss(TestCrossEntropy):
    stage = Sft(loss="dft")


class TestSmoothedTargets(TestCrossEntropy):
    stage = Sft(label_smoothing=0.2, token_accuracy=True)
