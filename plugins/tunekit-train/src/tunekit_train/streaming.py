"""Data read, shuffled and encoded while it is trained on, with an exact way back to any micro-batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from tunekit.data import shuffle_buffer
from tunekit.errors import DataError, Problem
from tunekit.values import Account, Example, Examples, Item

CHUNK = 64
"""Examples encoded at once: enough for a tokenizer to work on in one go, few enough to read little ahead."""


class ItemEncoder(Protocol):
    """What makes items of examples. The same examples give the same items, however they are divided into calls."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything that decides what the items are."""
        ...

    def encode(self, examples: Sequence[Example], account: Account) -> list[list[Item]]:
        """The items of each example; what becomes of it is noted."""
        ...

    def encode_all(self, examples: Iterable[Example], account: Account) -> Iterator[Item]:
        """The items of all examples, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a stream: behind so many `items` of those made of a chunk of examples.

    The chunk begins behind `examples` examples of pass `passed`, counted from 0. `account` holds the accounts of the
    sources as they were there, pickled; None after the first pass, which alone is noted. `batches` counts the
    micro-batches before.
    """

    passed: int = 0
    examples: int = 0
    items: int = 0
    account: bytes | None = None
    batches: int = 0


class StreamedItems:
    """The items of examples, each time read anew: nothing is kept.

    `account` says what became of the rows read so far. `fingerprint` changes with the data and with what is made of it.
    """

    size = None

    def __init__(
        self,
        data: Examples,
        encoder: ItemEncoder,
        fit: Callable[[Iterable[Example]], Iterator[Example]],
        seed: int,
        fingerprint: str,
    ) -> None:
        self.data, self.encoder, self.fit, self.seed = data, encoder, fit, seed
        self.fingerprint, self.mixing, self.account = fingerprint, data.mixing, data.account

    def __iter__(self) -> Iterator[Item]:
        """One pass in the order of the data."""
        return self.encoder.encode_all(self.fit(self.data), self.account)

    def after(self, position: Position) -> Generator[tuple[Item, Position], None, None]:
        """The items behind a position, pass after pass without an end, each with the position behind it.

        Up to the position examples are read and shuffled, but not encoded. Raises DataError at the first row that
        cannot be used and may not be left out, and where a whole pass has no item.
        """
        while True:
            empty = position.items == 0
            for item, behind in self._pass(position):
                empty = False
                yield item, behind
            if empty:
                self.account.stop_on_problems()
                name = ", ".join(self.account.sources) or "data"
                raise DataError([Problem(name, "holds no example to train on", "give at least one row")])
            position = Position(position.passed + 1)

    def _pass(self, position: Position) -> Iterator[tuple[Item, Position]]:
        account = Account() if position.passed else self.account
        account.clear()
        examples = self._examples(position.passed, account)
        done, used = sum(1 for _ in islice(examples, position.examples)), position.items
        if position.account is not None:
            _restore_(account, position.account)
        while True:
            before = None if position.passed else pickle.dumps(account.sources)
            chunk = list(islice(examples, CHUNK))
            if not chunk:
                return
            items = [item for made in self.encoder.encode(chunk, account) for item in made]
            _stop_at_problems(account)
            for at in range(used, len(items)):
                yield items[at], Position(position.passed, done, at + 1, before)
            done, used = done + len(chunk), 0

    def _examples(self, passed: int, account: Account) -> Iterator[Example]:
        """One pass over the examples, in the order in which they are trained."""
        examples = _watched(self.fit(self.data.start(account)), account)
        if not self.mixing.shuffle:
            return examples
        return shuffle_buffer(examples, self.mixing.buffer, f"{self.seed} epoch {passed}")

    def state(self, position: Position) -> dict[str, Any]:
        """What a checkpoint keeps: plain data."""
        kept = {name: getattr(position, name) for name in ("passed", "examples", "items", "batches")}
        account = Account()
        account.sources = self.account.sources if position.account is None else pickle.loads(position.account)
        return {**kept, "account": account.to_mapping()}

    def take_up_(self, state: Mapping[str, Any]) -> Position:
        """Go back to where a checkpoint was written."""
        kept = dict(state)
        sources = Account.from_mapping(kept.pop("account")).sources
        if not kept["passed"]:
            return Position(**kept, account=pickle.dumps(sources))
        self.account.clear()
        self.account.sources = sources
        return Position(**kept)


def _watched(examples: Iterator[Example], account: Account) -> Iterator[Example]:
    """Stop at the first row that is no example."""
    for example in examples:
        _stop_at_problems(account)
        yield example
    _stop_at_problems(account)


def _stop_at_problems(account: Account) -> None:
    if account.problems:
        account.stop_on_problems()


def _restore_(account: Account, kept: bytes) -> None:
    """Give the accounts of sources the values kept; they stay the same objects, since a reader holds on to them.

    They come in the same order, and may have other names: of a path that was written otherwise.
    """
    restored = pickle.loads(kept).values()
    for source, values in zip(account.sources.values(), restored, strict=True):
        vars(source).update({**vars(values), "name": source.name})
