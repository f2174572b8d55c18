"""How long sequences are: quantiles, the bins of a histogram, and what padding and packing would make of them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDE = 8
"""From this many medians on, the 99% quantile is called far away, and bins double in width instead of being equal."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The sequences of `first` to `last` tokens, both included. `beyond`: longer than the limit."""

    first: int
    last: int
    count: int
    beyond: bool = False

    @property
    def name(self) -> str:
        """What to call it: `65 to 128`."""
        return f"{self.first:,}" if self.first == self.last else f"{self.first:,} to {self.last:,}"


class Lengths:
    """Sequences counted by their tokens. `limit` is the most tokens that the stage takes, where it has a limit."""

    def __init__(self, counts: Mapping[int, int], limit: int | None = None) -> None:
        self.counts: Counter[int] = Counter({length: count for length, count in sorted(counts.items()) if count})
        self.limit = limit

    @property
    def sequences(self) -> int:
        """How many there are."""
        return self.counts.total()

    @property
    def beyond(self) -> int:
        """How many are longer than the limit."""
        return sum(count for length, count in self.counts.items() if self.limit and length > self.limit)

    def quantile(self, share: float) -> int:
        """The shortest length that is not exceeded by this share of the sequences (nearest rank); there is one."""
        rank, passed = max(1, math.ceil(share * self.sequences)), 0
        for length, count in self.counts.items():
            passed += count
            if passed >= rank:
                return length
        raise AssertionError("no sequence was counted")

    @property
    def spread(self) -> bool:
        """Whether the lengths are so far apart that bins of equal width would show one bar."""
        return self.quantile(0.99) > WIDE * max(1, self.quantile(0.5)) or (
            self.quantile(1.0) > WIDE * max(1, self.quantile(0.99))
        )

    def bins(self, most: int = 16) -> tuple[Bin, ...]:
        """At most about `most` bins that touch each other and hold every sequence; the limit is the end of a bin."""
        if not self.counts:
            return ()
        edges = set(_doubling(self.counts, most) if self.spread else _equal(self.counts, most))
        if self.limit is not None and min(edges) < self.limit < max(edges):
            edges.add(self.limit)
        return tuple(self._bin(low + 1, high) for low, high in pairwise(sorted(edges)))

    def to_mapping(self) -> dict[str, int]:
        """Quantiles as plain data; empty where there is no sequence."""
        if not self.counts:
            return {}
        quantiles = {"shortest": 0.0, "median": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}
        return {name: self.quantile(share) for name, share in quantiles.items()}

    def _bin(self, first: int, last: int) -> Bin:
        count = sum(count for length, count in self.counts.items() if first <= length <= last)
        return Bin(first, last, count, self.limit is not None and first > self.limit)


def padding_share(items: Iterable[Sequence[int]], rows: int) -> float:
    """The share of positions that is padding where `rows` items at a time, in this order, are padded to the longest.

    Each item is the lengths of its sequences.
    """
    real, padded, batch = 0, 0, list[int]()
    for number, lengths in enumerate(items, 1):
        batch.extend(lengths)
        if number % rows == 0:
            real, padded, batch = real + sum(batch), padded + max(batch) * len(batch), []
    if batch:
        real, padded = real + sum(batch), padded + max(batch) * len(batch)
    return 1 - real / padded if padded else 0.0


def packing_share(lengths: Iterable[int], limit: int) -> float:
    """The share of positions filled where sequences are laid into rows of `limit` tokens, in their order.

    That is next fit: a sequence that does not fit into the open row closes it. A longer one is counted as cut.
    """
    packs, room, tokens = 0, 0, 0
    for length in (min(length, limit) for length in lengths):
        if length > room:
            packs, room = packs + 1, limit
        room -= length
        tokens += length
    return tokens / (packs * limit) if packs else 0.0


def _doubling(counts: Mapping[int, int], most: int) -> list[int]:
    """Edges at powers of two, and between them at as many equal steps as `most` bins allow: 32, 48, 64, 96, ..."""
    lowest, highest = min(counts), max(counts)
    powers = [2**power for power in range(max(highest, 1).bit_length() + 1)]
    for steps in (8, 4, 2, 1):
        edges = sorted({-1, 0, *(power + power * step // steps for power in powers for step in range(steps))})
        first = bisect_left(edges, lowest) - 1
        edges = edges[first : bisect_left(edges, highest) + 1]
        if len(edges) <= most + 1:
            break
    return edges


def _equal(counts: Mapping[int, int], most: int) -> list[int]:
    """Edges at multiples of a power of two, since limits are."""
    lowest, highest = min(counts), max(counts)
    width = 1
    while (highest // width - lowest // width) + 1 > most:
        width *= 2
    return list(
        range((max(lowest, 1) - 1) // width * width - (lowest < 1), -(-highest // width) * width + width, width)
    )
