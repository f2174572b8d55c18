"""Mismatched answers: each prompt with the answer of another item, fixed by the seed, within the length limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tunekit.values import Item, TokenSequence
from tunekit_kto.mismatch import MismatchedItems, mismatched, partners
from tunekit_train import Items


def item(number: int, prompt: int, answer: int, label: bool = True) -> Item:
    """Prompt tokens are 100 + number, answer tokens 200 + number."""
    ids = [100 + number] * prompt + [200 + number] * answer
    return Item((TokenSequence(ids, [0.0] * prompt + [1.0] * answer, number, f"row {number}"),), label=label)


def some(count: int = 20) -> Items:
    return Items([item(number, 1 + number % 4, 1 + number % 5, number % 2 == 0) for number in range(count)])


def test_the_second_sequence_is_the_prompt_with_the_answer_of_another_item() -> None:
    items = MismatchedItems(some(), seed=0, max_length=100)
    used = []
    for number, made in enumerate(items):
        own, other = made.sequences
        assert own == some()[number].sequences[0]
        prompt, answer = 1 + number % 4, set(list(other.ids)[1 + number % 4 :])
        assert list(other.ids[:prompt]) == list(own.ids[:prompt])
        (partner,) = {token - 200 for token in answer}
        assert partner != number
        assert len(other) - prompt == 1 + partner % 5
        assert list(other.weights) == [0.0] * prompt + [1.0] * (1 + partner % 5)
        assert (made.label, other.where) == (number % 2 == 0, own.where)
        used.append(partner)
    assert sorted(used) == list(range(20))


def test_the_seed_decides_who_stands_beside_whom() -> None:
    def partners(seed: int) -> list[int]:
        return [int(made.sequences[1].ids[-1]) for made in MismatchedItems(some(), seed, 100)]

    assert partners(0) == partners(0)
    assert partners(0) != partners(1)


def test_no_answer_stands_behind_its_own_prompt_where_several_were_given_to_it() -> None:
    asked = [0, 0, 0, 1, 1, 2, 3, 3, 4, 5]
    for seed in range(20):
        others = partners(np.array(asked), f"{seed}")
        assert sorted(others.tolist()) == list(range(10))
        assert all(asked[own] != asked[other] for own, other in enumerate(others))


def test_a_prompt_of_more_than_half_of_the_items_meets_others_as_often_as_there_are_any() -> None:
    asked = [0, 0, 0, 0, 0, 1, 2]
    others = partners(np.array(asked), "0")
    assert sum(asked[own] != asked[other] for own, other in enumerate(others)) == 4
    assert sorted(others.tolist()) == list(range(7))
    alone = partners(np.zeros(5, np.int64), "0")
    assert all(other != own for own, other in enumerate(alone))


def test_the_answer_to_the_same_prompt_is_no_mismatch() -> None:
    twice = [replace(item(number // 2, 2, 3), label=number % 2 == 0) for number in range(12)]
    for number, made in enumerate(MismatchedItems(Items(twice), seed=0, max_length=100)):
        assert made.sequences[1].ids[-1] != 200 + number // 2


def test_nothing_learns_from_a_held_out_answer() -> None:
    training = np.array([0, 2, 3, 5, 7, 8, 11, 12, 13, 17])
    for seed in range(10):
        items = MismatchedItems(some(), seed, 100, training)
        met = [int(items[int(at)].sequences[1].ids[-1]) - 200 for at in training]
        assert sorted(met) == training.tolist()
        assert all(int(items[at].sequences[1].ids[-1]) - 200 != at for at in range(20))


def test_the_fingerprint_tells_which_items_are_trained_on() -> None:
    data = some()
    data.fingerprint = "data"
    told = {MismatchedItems(data, 0, 100, np.arange(count)).fingerprint for count in (10, 12, 20)}
    assert len(told) == 3
    assert MismatchedItems(data, 0, 100).fingerprint in told


def test_a_mismatched_answer_is_cut_at_its_end_to_the_limit() -> None:
    long, short = item(1, 6, 2).sequences[0], item(2, 1, 9).sequences[0]
    made = mismatched(long, short, max_length=8)
    assert list(made.ids) == [101] * 6 + [202] * 2
    assert list(made.weights) == [0.0] * 6 + [1.0] * 2
    assert made.cut == 7


@pytest.mark.parametrize("limit", [100, 7])
def test_lengths_are_those_of_the_items_made(limit: int) -> None:
    items = MismatchedItems(some(), seed=3, max_length=limit)
    assert items.lengths.tolist() == [made.tokens for made in items]


def test_account_and_mixing_are_those_of_the_data() -> None:
    data = some()
    items = MismatchedItems(data, 0, 100)
    assert items.account is data.account
    assert items.mixing is data.mixing
    assert len(items) == items.size == 20
