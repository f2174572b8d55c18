"""Micro-batches of a stream, numbered, so that Trainer can count them and skip those it has trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch.utils.data import Sampler

from tunekit.values import Item

from .objective import Batch
from .streaming import Position, StreamedItems


@dataclass(frozen=True)
class Drawn:
    """A micro-batch, and the position of the stream behind it."""

    batch: Batch
    position: Position


class StreamedBatches:
    """Micro-batches of `rows` bins, taken by their number in ascending order, from the position on.

    A bin takes items as they come until the next would make it longer than `size` tokens; of size 0 it takes one. An
    item longer than a bin has one of its own.
    """

    def __init__(self, items: StreamedItems, rows: int, size: int, position: Position) -> None:
        self.rows, self.size = rows, size
        self._number = position.batches
        self._items = items.after(position)
        self._waiting: tuple[Item, Position] | None = None

    def __getitem__(self, number: int) -> Drawn:
        assert number >= self._number, f"micro-batch {number} is behind {self._number}, and a stream only goes on"
        while True:
            items, position = self._fill()
            self._number += 1
            if self._number > number:
                return Drawn(Batch(tuple(items)), replace(position, batches=self._number))

    def close(self) -> None:
        """Let go of what is being read."""
        self._items.close()

    def _fill(self) -> tuple[list[Item], Position]:
        items: list[Item] = []
        position, bins, filled = Position(), 0, 0
        while True:
            item, behind = self._waiting or next(self._items)
            if not items or filled + item.tokens > self.size:
                if bins == self.rows:
                    self._waiting = (item, behind)
                    return items, position
                bins, filled = bins + 1, 0
            self._waiting = None
            items.append(item)
            position, filled = behind, filled + item.tokens


class InTurn(Sampler[list[int]]):
    """The numbers of all micro-batches of a stream, one after the other."""

    def __init__(self, count: int, rows: int) -> None:
        self.count = count
        self.batch_size, self.drop_last = rows, False  # accelerate reads these where it shards over processes

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in range(self.count))
