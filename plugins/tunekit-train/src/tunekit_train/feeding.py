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


@dataclass(frozen=True)
class Room:
    """A micro-batch of `rows` bins of `size` tokens; `padded`: padding counts. A bin of size 0 holds one item."""

    rows: int
    size: int
    padded: bool = False

    def fits(self, filled: list[Item], item: Item) -> bool:
        """Whether a bin that holds these items has room for one more. An item longer than a bin has one of its own."""
        if not filled:
            return True
        if not self.padded:
            return sum(each.tokens for each in filled) + item.tokens <= self.size
        lengths = [len(sequence) for each in (*filled, item) for sequence in each.sequences]
        return len(lengths) * max(lengths) <= self.size


class StreamedBatches:
    """Micro-batches taken by their number in ascending order, from the position on.

    A bin takes items as they come until the next does not fit.
    """

    def __init__(self, items: StreamedItems, room: Room, position: Position) -> None:
        self.room = room
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
        bins: list[list[Item]] = [[]]
        position = Position()
        while True:
            item, behind = self._waiting or next(self._items)
            if not self.room.fits(bins[-1], item):
                if len(bins) == self.room.rows:
                    self._waiting = (item, behind)
                    return [each for filled in bins for each in filled], position
                bins.append([])
            self._waiting = None
            bins[-1].append(item)
            position = behind


class InTurn(Sampler[list[int]]):
    """The numbers of all micro-batches of a stream, one after the other."""

    def __init__(self, count: int, rows: int) -> None:
        self.count = count
        self.batch_size, self.drop_last = rows, False  # accelerate reads these where it shards over processes

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in range(self.count))
