"""Items put together in bins of so many tokens, so that every micro-batch is about full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .config import Packing
from .items import Indices
from .permuting import permutation


@dataclass(frozen=True)
class Bins:
    """Which items lie together: `members` bin by bin [items], and the `borders` of the bins in it [bins + 1]."""

    members: Indices
    borders: Indices

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, number: int) -> list[int]:
        """The items of one bin."""
        found: list[int] = self.members[self.borders[number] : self.borders[number + 1]].tolist()
        return found

    def tokens(self, lengths: Indices) -> Indices:
        """Tokens in each bin, [bins], from those of each item."""
        ends = np.concatenate([[0], np.cumsum(lengths[self.members])])[self.borders]
        return np.diff(ends)

    def efficiency(self, lengths: Indices, size: int) -> float:
        """Tokens per place in the bins. An item longer than a bin has one of its own size."""
        tokens = self.tokens(lengths)
        return float(tokens.sum() / np.maximum(tokens, size).sum())

    @classmethod
    def of(cls, bins: Sequence[Sequence[int]]) -> Bins:
        """Make them of lists of items."""
        borders = np.cumsum([0, *map(len, bins)], dtype=np.int64)
        return cls(np.fromiter((item for each in bins for item in each), np.int64, int(borders[-1])), borders)


def pack(lengths: Indices, packing: Packing, size: int, seed: int, shuffle: bool = True) -> Bins:
    """Put items of these lengths in bins of `size` tokens: each item once, items whole.

    `none` gives each item a bin of its own. The bins follow from the arguments alone, so that a run that goes on finds
    the same ones.
    """
    if packing == "none":
        return Bins(np.arange(len(lengths)), np.arange(len(lengths) + 1))
    order = permutation(len(lengths), f"{seed} packing") if shuffle else np.arange(len(lengths))
    return next_fit(lengths, order, size) if packing == "greedy" else best_fit(lengths, order, size)


def next_fit(lengths: Indices, order: Indices, size: int) -> Bins:
    """Fill one bin after the other in this order; the next begins where an item does not fit any more."""
    borders, filled = [0], 0
    for at, length in enumerate(lengths[order].tolist()):
        if filled + length > size and at > borders[-1]:
            borders.append(at)
            filled = 0
        filled += length
    return Bins(order, np.array([*borders, len(order)] if len(order) else [0]))


def best_fit(lengths: Indices, order: Indices, size: int) -> Bins:
    """Put the longest items first, each in the fullest bin that still has room for it: best fit decreasing."""
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # the bins that have exactly so much room
    rooms = 0  # a bit for each room that some bin has, so that the least that suffices is found at once
    falling = order[np.argsort(-lengths[order], kind="stable")]
    for item, length in zip(falling.tolist(), lengths[falling].tolist(), strict=True):
        if enough := rooms >> length:
            room = length + (enough & -enough).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            bins[number].append(item)
        else:
            room, number = max(size, length), len(bins)
            bins.append([item])
        if left := room - length:
            with_room.setdefault(left, []).append(number)
            rooms |= 1 << left
    return Bins.of(bins)
