"""Rows and examples to test with."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..values import Account, Example, Examples, Item, Message, Row, Rows, Source, TokenSequence

_PAIRS = (
    ("Which river flows through the town?", "The river is called the Amber."),
    ("What is two and three?", "Two and three is five."),
    ("What is four and five?", "Four and five is nine."),
    ("What is a plain answer?", "A plain answer is better than a long one."),
    ("Who vexes the jury?", "Seven wizards vex the bold jury."),
    ("What does the fox do?", "The quick brown fox jumps over the lazy dog."),
    ("Where does the river go?", "It flows from the hills to the sea."),
    ("What is better than a guess?", "A question is better than a guess."),
)


@dataclass(frozen=True)
class GivenItems:
    """Items that are there: a `tunekit.values.Prepared`."""

    items: tuple[Item, ...]
    account: Account = field(default_factory=Account)

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


def prepared_items(count: int = 16, length: int = 24, vocabulary: int = 512) -> GivenItems:
    """Make what a stage learns from: random tokens, always the same, of which the second half is supervised."""
    dice, half = random.Random(7), length // 2
    rows = ([dice.randrange(3, vocabulary) for _ in range(length)] for _ in range(count))
    weights = [0.0] * half + [1.0] * (length - half)
    sequences = (TokenSequence(ids, weights, row + 1, f"a test, row {row + 1}") for row, ids in enumerate(rows))
    return GivenItems(tuple(Item((sequence,)) for sequence in sequences))


def conversations(count: int = 8) -> Examples:
    """Make examples of one question and one answer each, of different lengths."""
    return examples_of(
        (Message("user", question), Message("assistant", answer)) for question, answer in map(_pair, range(count))
    )


def preferences(count: int = 8) -> Examples:
    """Make pairs: a question, its answer, and the answer to another question as the rejected one."""
    return Examples.of(
        Example(
            number + 1,
            f"a test, row {number + 1}",
            messages=(Message("user", _pair(number)[0]),),
            chosen=(Message("assistant", _pair(number)[1]),),
            rejected=(Message("assistant", _pair(number + 1)[1]),),
        )
        for number in range(count)
    )


def labelled(count: int = 8) -> Examples:
    """Make questions, in turn with their own answer, which is good, and with that to another, which is bad."""
    return Examples.of(
        Example(
            number + 1,
            f"a test, row {number + 1}",
            messages=(
                Message("user", _pair(number)[0]),
                Message("assistant", _pair(number + number % 2)[1]),
            ),
            label=number % 2 == 0,
        )
        for number in range(count)
    )


def examples_of(conversations: Iterable[Sequence[Message]]) -> Examples:
    """Make examples of conversations."""
    made = tuple(
        Example(number, f"a test, row {number}", messages=tuple(messages))
        for number, messages in enumerate(conversations, 1)
    )
    return Examples.of(made)


def rows_of(values: Sequence[Mapping[str, Any]], source: Source | None = None) -> Rows:
    """Open rows as a reader would; columns are those of the first row."""
    source = source or Source(rows=values)
    rows = tuple(Row(number, f"{source.name}, row {number}", row) for number, row in enumerate(values, 1))
    columns = tuple(values[0]) if values else ()
    return Rows(source, columns, lambda: iter(rows), fingerprint="0")


def _pair(number: int) -> tuple[str, str]:
    return _PAIRS[number % len(_PAIRS)]
