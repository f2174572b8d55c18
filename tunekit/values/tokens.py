"""What a stage learns from, as tokens: sequences with a loss weight on each token, gathered into items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .account import Account


class Inputs(Protocol):
    """What a model is given of a sequence besides its tokens, such as the pixels of its images."""

    @property
    def fingerprint(self) -> str:
        """Changes with what is given."""
        ...

    def laid(self, others: Sequence[Inputs], input_ids: Any) -> Mapping[str, Any]:
        """The further arguments of the model for a batch with `input_ids` [batch seq].

        `others` are the inputs of all its sequences that have any, in their order, this one among them.
        """
        ...


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence of tokens.

    `ids` and `weights` have one entry per token: lists, tuples or arrays of numbers. `weights[i]` is the loss weight of
    token i as a target, 0 where it is only context; the first token is never a target. `cut` counts the tokens that a
    length limit took away. `row` and `where` lead back to the row of the data. `inputs` is what else it is given.
    """

    ids: Sequence[int]
    weights: Sequence[float]
    row: int
    where: str
    cut: int = 0
    inputs: Inputs | None = None

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
