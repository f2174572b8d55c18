"""Micro-batches of as many items as fit in so many tokens."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np

from tunekit.values import Item

from .items import IndexedItems, Indices, Items
from .order import BatchOrder
from .packing import next_fit
from .permuting import permutation


@dataclass(frozen=True)
class Sizes:
    """The room that items take: `tokens` [items], and where batches are padded `rows` and `longest` [items].

    A padded batch of some items takes the sum of their rows times the longest of their sequences.
    """

    tokens: Indices
    rows: Indices | None = None
    longest: Indices | None = None

    @classmethod
    def of(cls, items: IndexedItems | Iterable[Item], padded: bool) -> Sizes:
        """Measure items; where batches are padded that is one pass over all of them."""
        known = items if isinstance(items, IndexedItems) else Items(items)
        if not padded:
            return cls(known.lengths)
        lengths = [[len(sequence) for sequence in item.sequences] for item in known]
        rows, longest = ([reduce(each) for each in lengths] for reduce in (len, max))
        return cls(known.lengths, np.array(rows, np.int64), np.array(longest, np.int64))


def fill(sizes: Sizes, order: Indices, tokens: int) -> Indices:
    """Fill one micro-batch after the other in this order; the borders between them, [batches + 1].

    An item that does not fit in an empty one has one of its own.
    """
    if sizes.rows is None or sizes.longest is None:
        return next_fit(sizes.tokens, order, tokens).borders
    borders, rows, widest = [0], 0, 0
    for at, (more, long) in enumerate(zip(sizes.rows[order].tolist(), sizes.longest[order].tolist(), strict=True)):
        if (rows + more) * max(widest, long) > tokens and at > borders[-1]:
            borders.append(at)
            rows, widest = 0, 0
        rows, widest = rows + more, max(widest, long)
    return np.array([*borders, len(order)] if len(order) else [0])


class TokenOrder(BatchOrder):
    """Lists of item indices, one per micro-batch, each as many as fit in `tokens`. From seed and epoch alone.

    All epochs have as many batches as the fullest of `TRIALS` orders needs, since Trainer counts on their number: an
    order that needs more is drawn again, and where one needs fewer its largest batches are halved. `by_length` sorts
    the items inside blocks of 50 batches, which saves padding, and shuffles the batches.
    """

    TRIALS = 8
    ATTEMPTS = 100

    def __init__(self, sizes: Sizes, tokens: int, seed: int, by_length: bool = False, shuffle: bool = True) -> None:
        super().__init__(sizes.tokens, 1, seed, by_length, shuffle)
        self.sizes, self.tokens = sizes, tokens
        trials = range(self.TRIALS if shuffle else 1)
        self._count = max(len(self._filled(epoch, 0)[1]) for epoch in trials) - 1

    def __len__(self) -> int:
        return self._count

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        order, borders = self._chosen(epoch)
        turns = permutation(len(self), f"{self.seed} batches {epoch}") if self.by_length else np.arange(len(self))
        for turn in turns.tolist():
            yield order[borders[turn] : borders[turn + 1]].tolist()

    def _chosen(self, epoch: int) -> tuple[Indices, Indices]:
        """An order that needs no more batches than all epochs have, and the borders of exactly so many."""
        for attempt in range(self.ATTEMPTS if self.shuffle else 1):
            order, borders = self._filled(epoch, attempt)
            if len(borders) <= self._count + 1:
                return order, _halved(borders, self._count)
        order, borders = self._filled(epoch % self.TRIALS, 0)
        return order, _halved(borders, self._count)

    def _filled(self, epoch: int, attempt: int) -> tuple[Indices, Indices]:
        number, again = len(self.lengths), f" again {attempt}" if attempt else ""
        order = permutation(number, f"{self.seed} epoch {epoch}{again}") if self.shuffle else np.arange(number)
        if self.by_length:
            about = max(1, int(self.lengths.sum()) // self.tokens)
            block = np.arange(number) // max(1, number * self.BLOCK // about)
            length = self.lengths if self.sizes.longest is None else self.sizes.longest
            order = order[np.lexsort((length[order], block))]
        return order, fill(self.sizes, order, self.tokens)


def _halved(borders: Indices, batches: int) -> Indices:
    """Halve the batches with the most items until there are so many."""
    ends, tie = borders.tolist(), count()
    waiting = [(start - end, next(tie), start, end) for start, end in pairwise(ends)]
    heapq.heapify(waiting)
    while len(ends) <= batches:
        _, _, start, end = heapq.heappop(waiting)
        middle = (start + end) // 2
        ends.append(middle)
        for half in ((start, middle), (middle, end)):
            heapq.heappush(waiting, (half[0] - half[1], next(tie), *half))
    return np.array(sorted(ends))
