"""The objectives do what the engine relies on: sums add up, layouts do not matter, the state comes back."""

from __future__ import annotations

import random
from typing import get_args

from tunekit.values import Item, TokenSequence
from tunekit_dpo import Cpo, Dpo, Orpo, Simpo
from tunekit_dpo.names import COUPLED, LossName
from tunekit_train import Objective
from tunekit_train.testing import VOCABULARY, ObjectiveSuite


def pairs(count: int = 6) -> list[Item]:
    """A prompt each, and two answers to it of different lengths; every other pair says how much better the first is."""
    dice = random.Random(0)
    return [_pair(dice, number) for number in range(count)]


def _pair(dice: random.Random, number: int) -> Item:
    prompt = [dice.randrange(3, VOCABULARY) for _ in range(dice.randint(2, 6))]
    first, second = (_answer(dice, prompt, number) for _ in range(2))
    return Item((first, second), margin=0.5 if number % 2 else None)


def _answer(dice: random.Random, prompt: list[int], number: int) -> TokenSequence:
    answer = [dice.randrange(3, VOCABULARY) for _ in range(dice.randint(1, 9))]
    return TokenSequence(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer), number, "a test")


class TestDpo(ObjectiveSuite):
    def objective(self) -> Objective:
        return Dpo().objective()

    def items(self) -> list[Item]:
        return pairs()


class TestDpoWithAllLossesThatDoNotCouple(TestDpo):
    def objective(self) -> Objective:
        names: list[LossName] = [name for name in get_args(LossName) if name not in COUPLED]
        return Dpo(loss=dict.fromkeys(names, 0.5), label_smoothing=0.1, tail_weight=0.5, sft_weight=1.0).objective()


class TestDpoWithADivergence(TestDpo):
    def objective(self) -> Objective:
        return Dpo(divergence="alpha", divergence_alpha=0.3).objective()


class TestDpoThatCouplesTheBatch(TestDpo):
    def objective(self) -> Objective:
        return Dpo(loss={"aot": 1.0, "aot_unpaired": 1.0}).objective()


class TestOrpo(TestDpo):
    def objective(self) -> Objective:
        return Orpo().objective()


class TestSimpo(TestDpo):
    def objective(self) -> Objective:
        return Simpo(sft_weight=0.5).objective()


class TestCpo(TestDpo):
    def objective(self) -> Objective:
        return Cpo().objective()
