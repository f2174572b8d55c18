"""Items that can be taken by their number: those in memory, and some of others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tunekit.values import Account, Item, Mixing

Indices = npt.NDArray[np.int64]


class IndexedItems(Sequence[Item]):
    """Items in the order of the data, with the account of the rows they come from.

    `fingerprint` says what they hold; empty where nobody has worked it out.
    """

    account: Account
    mixing: Mixing
    fingerprint: str = ""

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self)

    @property
    @abstractmethod
    def lengths(self) -> Indices:
        """Tokens of each item, [items]."""

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self.take(at) for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.take(index % len(self))

    @abstractmethod
    def take(self, index: int) -> Item:
        """The item of this number, from 0."""


class Items(IndexedItems):
    """Items in memory."""

    def __init__(self, items: Iterable[Item], account: Account | None = None, mixing: Mixing | None = None) -> None:
        self._items = list(items)
        self.account = account or Account()
        self.mixing = mixing or Mixing()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def take(self, index: int) -> Item:
        """The item of this number."""
        return self._items[index]

    @cached_property
    def lengths(self) -> Indices:
        """Tokens of each item."""
        return np.fromiter((item.tokens for item in self), np.int64, len(self))


class Selection(IndexedItems):
    """Some of other items, by their numbers there; nothing is copied."""

    def __init__(self, items: IndexedItems, chosen: npt.NDArray[Any]) -> None:
        self._items, self._chosen = items, chosen
        self.account, self.mixing = items.account, items.mixing

    def __len__(self) -> int:
        return len(self._chosen)

    def take(self, index: int) -> Item:
        """The item of this number."""
        return self._items.take(int(self._chosen[index]))

    @cached_property
    def lengths(self) -> Indices:
        """Tokens of each item."""
        lengths: Indices = self._items.lengths[self._chosen]
        return lengths
