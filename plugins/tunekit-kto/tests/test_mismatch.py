"""Mismatched answers: each prompt with the answer of another item, fixed by the seed, within the length limit."""

from __future__ import annotations

import pytest

from tunekit.values import Item, TokenSequence
from tunekit_kto.mismatch import MismatchedItems, mismatched
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
