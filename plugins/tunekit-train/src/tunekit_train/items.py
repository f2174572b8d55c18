"""The data of a stage in memory: items that can be taken by their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import overload

from tunekit.values import Account, Item, Mixing


class Items(Sequence[Item]):
    """Items in the order of the data, with the account of the rows they come from."""

    def __init__(self, items: Iterable[Item], account: Account | None = None, mixing: Mixing | None = None) -> None:
        self._items = list(items)
        self.account = account or Account()
        self.mixing = mixing or Mixing()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        return self._items[index]

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each item."""
        return [item.tokens for item in self]
