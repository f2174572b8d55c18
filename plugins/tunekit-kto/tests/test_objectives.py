"""The objectives do what the engine relies on: sums add up or the batch is coupled, and layouts do not matter."""

from __future__ import annotations

from dataclasses import replace

from tunekit.values import Item
from tunekit_kto import Kto
from tunekit_kto.mismatch import MismatchedItems
from tunekit_train import Items, Objective
from tunekit_train.testing import ObjectiveSuite, random_items


class TestKtoWithoutAKlTerm(ObjectiveSuite):
    def objective(self) -> Objective:
        return Kto(loss="apo_zero_unpaired", desirable_weight=1.3).objective()

    def items(self) -> list[Item]:
        return [replace(item, label=number % 3 != 0) for number, item in enumerate(random_items(6))]


class TestKto(TestKtoWithoutAKlTerm):
    def objective(self) -> Objective:
        return Kto().objective()

    def items(self) -> list[Item]:
        return list(MismatchedItems(Items(super().items()), seed=0, max_length=30))
