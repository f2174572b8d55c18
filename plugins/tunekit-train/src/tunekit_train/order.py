"""The order of the data: a fixed list of batches per epoch, from seed and epoch alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from .items import Indices
from .objective import Batch
from .packing import Bins, pack
from .permuting import permutation


def split(count: int, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split row indices into those trained on and those held out, each in ascending order.

    A share above 0 holds out at least one row, and always leaves one to train on where there are two.
    """
    held = min(max(1, round(share * count)), count - 1) if share else 0
    chosen = np.zeros(count, dtype=bool)
    chosen[permutation(count, f"{seed} split")[:held]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def extended(digest: str, batch: Batch) -> str:
    """Go on with a digest of all tokens that were trained on so far, in their order; it begins empty."""
    made = hashlib.sha256(digest.encode())
    for sequence in batch.sequences:
        made.update(np.asarray(sequence.ids, dtype=np.int64).tobytes())
        made.update(np.asarray(sequence.weights, dtype=np.float64).tobytes())
    return made.hexdigest()


class BatchOrder(Sampler[list[int]]):
    """Lists of item indices, one per micro-batch of `rows` bins. The same (seed, epoch) gives the same lists anywhere.

    Without `bins` each item has one of its own.
    `shuffle` draws a new order of the bins for each epoch; without it every epoch keeps the order they have.
    `by_length` puts bins of similar length together: the shuffled bins are sorted inside blocks of 50 batches, then
    the batches are shuffled, so that order stays random beyond a block.
    """

    BLOCK = 50

    def __init__(
        self,
        lengths: npt.ArrayLike,
        rows: int,
        seed: int,
        by_length: bool = False,
        shuffle: bool = True,
        bins: Bins | None = None,
    ) -> None:
        self.lengths, self.rows, self.seed = np.asarray(lengths), rows, seed
        self.bins = bins or pack(self.lengths, "none", 0, seed)
        self.shuffle, self.by_length = shuffle, by_length
        self.batch_size, self.drop_last = rows, False  # accelerate reads these where it shards over processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Trainer calls this at its start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.bins) // self.rows)

    def __iter__(self) -> Iterator[list[int]]:
        return self._batches(self.epoch)

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, in order."""
        return list(self._batches(epoch))

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        order, rows = self._order(epoch), self.rows
        turns = permutation(len(self), f"{self.seed} batches {epoch}") if self.by_length else np.arange(len(self))
        for turn in turns.tolist():
            chosen = order[turn * rows : (turn + 1) * rows].tolist()
            yield [item for number in chosen for item in self.bins[number]]

    def _order(self, epoch: int) -> Indices:
        """The bins, one micro-batch after the other."""
        count = len(self.bins)
        order = permutation(count, f"{self.seed} epoch {epoch}") if self.shuffle else np.arange(count)
        if not self.by_length:
            return order
        block = np.arange(count) // (self.rows * self.BLOCK)
        similar: Indices = order[np.lexsort((self.bins.tokens(self.lengths)[order], block))]
        return similar
