"""The order of the data: a fixed list of batches per epoch, from seed and epoch alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split row indices into those trained on and those held out, each in ascending order.

    A share above 0 holds out at least one row, and always leaves one to train on where there are two.
    """
    held = min(max(1, round(share * count)), count - 1) if share else 0
    chosen = set(random.Random(f"{seed} split").sample(range(count), held))
    return [index for index in range(count) if index not in chosen], sorted(chosen)


class BatchOrder(Sampler[list[int]]):
    """Lists of item indices, one per micro-batch. The same (seed, epoch) gives the same lists in any process.

    `by_length` puts items of similar length together: the shuffled items are sorted inside blocks of 50 batches, then
    the batches are shuffled, so that order stays random beyond a block.
    """

    BLOCK = 50

    def __init__(self, lengths: Sequence[int], rows: int, seed: int, by_length: bool = False) -> None:
        self.lengths, self.rows, self.seed, self.by_length = lengths, rows, seed, by_length
        self.batch_size, self.drop_last = rows, False  # accelerate reads these where it shards over processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Trainer calls this at its start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.rows)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches(self.epoch))

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, in order."""
        shuffler = random.Random(f"{self.seed} epoch {epoch}")
        order = list(range(len(self.lengths)))
        shuffler.shuffle(order)
        if not self.by_length:
            return _chunks(order, self.rows)
        blocks = _chunks(order, self.rows * self.BLOCK)
        batches = [
            batch for block in blocks for batch in _chunks(sorted(block, key=lambda at: self.lengths[at]), self.rows)
        ]
        shuffler.shuffle(batches)
        return batches


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
