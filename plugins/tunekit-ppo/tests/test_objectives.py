"""The objective does what the engine relies on: sums add up, and layouts do not matter."""

from __future__ import annotations

from tunekit.values import Item
from tunekit_ppo import Ppo
from tunekit_ppo.testing import answers
from tunekit_train import Objective
from tunekit_train.testing import ObjectiveSuite


class TestPpo(ObjectiveSuite):
    def objective(self) -> Objective:
        return Ppo().objective()

    def items(self) -> list[Item]:
        return list(answers())


class TestPpoWithEntropy(TestPpo):
    def objective(self) -> Objective:
        return Ppo(entropy_coefficient=0.1, rollout={"temperature": 0.7}).objective()
