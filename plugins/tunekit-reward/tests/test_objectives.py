"""The objective does what the engine relies on: sums add up, and layouts do not matter."""

from __future__ import annotations

from typing import ClassVar

from tunekit.values import Item
from tunekit_reward import Reward
from tunekit_train import Objective
from tunekit_train.testing import ObjectiveSuite, random_items


class TestReward(ObjectiveSuite):
    unmoved: ClassVar[frozenset[str]] = frozenset({"value_head.default.offset"})

    def objective(self) -> Objective:
        return Reward().objective()

    def items(self) -> list[Item]:
        singles = [item.sequences[0] for item in random_items(12)]
        return [Item(pair, margin=0.5) for pair in zip(singles[::2], singles[1::2], strict=True)]


class TestCentredReward(TestReward):
    unmoved: ClassVar[frozenset[str]] = frozenset()

    def objective(self) -> Objective:
        return Reward(centring=0.1, label_smoothing=0.1).objective()
