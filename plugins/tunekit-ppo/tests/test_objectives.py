"""The objective does what the engine relies on: sums add up, and layouts do not matter."""

from __future__ import annotations

import numpy as np

from tunekit.values import Item, TokenSequence
from tunekit_ppo import Ppo
from tunekit_ppo.objective import Answered
from tunekit_train import Objective
from tunekit_train.testing import ObjectiveSuite, random_items


def answers() -> list[Item]:
    """Answers with made-up figures of a rollout."""
    dice, found = np.random.default_rng(0), []
    for item in random_items(6):
        (sequence,) = item.sequences
        whole = TokenSequence(sequence.ids, [float(weight > 0) for weight in sequence.weights], sequence.row, "row")
        count = sum(map(bool, whole.weights[1:]))
        numbers = {name: dice.normal(size=count).astype(np.float32) for name in ("values", "advantages", "returns")}
        log_probs = (dice.normal(size=count) * 0.1 - 4.85).astype(np.float32)
        found.append(Answered((whole,), log_probs=log_probs, told={"reward": float(item.tokens)}, **numbers))
    return found


class TestPpo(ObjectiveSuite):
    def objective(self) -> Objective:
        return Ppo().objective()

    def items(self) -> list[Item]:
        return answers()


class TestPpoWithEntropy(TestPpo):
    def objective(self) -> Objective:
        return Ppo(entropy_coefficient=0.1, rollout={"temperature": 0.7}).objective()
