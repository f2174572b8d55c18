"""What a stage learns from, as tokens: sequences with a loss weight on each token, gathered into items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from .account import Account


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence of tokens.

    `ids` and `weights` have one entry per token: lists, tuples or arrays of numbers. `weights[i]` is the loss weight of
    token i as a target, 0 where it is only context; the first token is never a target. `cut` counts the tokens that a
    length limit took away. `row` and `where` lead back to the row of the data.
    """

    ids: Sequence[int]
    weights: Sequence[float]
    row: int
    where: str
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Item:
    """What stays together in a batch: one sequence, a chosen and a rejected one, or a group.

    `label` says whether a labelled answer is good; `margin` by how much a chosen answer is better.
    """

    sequences: tuple[TokenSequence, ...]
    label: bool | None = None
    margin: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(len(sequence.ids) for sequence in self.sequences)


@runtime_checkable
class Prepared(Protocol):
    """The data of a stage, ready to be trained on: items in the order of the data, each pass the same."""

    @property
    def account(self) -> Account:
        """What became of every row."""
        ...

    @property
    def size(self) -> int | None:
        """How many items there are; None while data is streamed."""
        ...

    def __iter__(self) -> Iterator[Item]: ...
