"""Items that a stage makes while it trains, of the model as it then is: answers that it gives to prompts, say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.values import Account, Item, Mixing

from .objective import Batch

if TYPE_CHECKING:
    from .job import Job
    from .sources import Sources


class ProducedItems(ABC):
    """Items made at borders, each time for the next `steps_between` optimiser steps.

    The engine calls `start` once, before the first step; `produce` at each border, when the steps on what was produced
    before are done; and `evaluate` wherever an evaluation is due. Checkpoints fall on borders alone, so that nothing
    that was produced has to be kept: a stage that goes on produces anew, with the same weights. What `produce` draws
    must follow from the seed and the number of the production alone.
    """

    account: Account
    mixing: Mixing
    fingerprint: str = ""
    size = None

    @property
    @abstractmethod
    def steps_between(self) -> int:
        """Optimiser steps from one border to the next."""

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Optimiser steps of the stage, where no option says how many."""

    @property
    @abstractmethod
    def held_out(self) -> int:
        """How many of what items are made of are kept for evaluation."""

    @property
    def held_out_numbers(self) -> tuple[int, ...]:
        """Their numbers in the order of the data, where they have any."""
        return ()

    @abstractmethod
    def start(self, job: Job, sources: Sources, checkpoint: Path | None) -> None:
        """Make ready: the model is as the stage found it, or as at the checkpoint."""

    @abstractmethod
    def produce(self, number: int) -> Sequence[Batch]:
        """The micro-batches of the steps from border `number`, counted from 0, to the next."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """What the model is worth on what is held out."""

    @abstractmethod
    def __iter__(self) -> Iterator[Item]:
        """What items are made of, in the order of the data."""

    def save(self, folder: Path) -> None:  # noqa: B027 - some need nothing
        """Write into a checkpoint, at a border, what `start` will need."""

    def facts(self) -> Mapping[str, Any]:
        """What the record keeps."""
        return {}

    def close(self) -> None:  # noqa: B027 - most hold nothing open
        """The last step is done, or the stage has failed."""


class ProducedBatches:
    """The micro-batches of a stage by their number, produced when the first of each border is asked for."""

    def __init__(self, items: ProducedItems, accumulation: int) -> None:
        self.items, self.count = items, items.steps_between * accumulation
        self._number, self._batches = -1, list[Batch]()

    def __getitem__(self, number: int) -> dict[str, Any]:
        border, place = divmod(number, self.count)
        if border != self._number:
            assert place == 0, f"micro-batch {number} does not follow a border, and what it belongs to is not kept"
            self._number, self._batches = border, list(self.items.produce(border))
            assert len(self._batches) == self.count, "as many micro-batches as there are until the next border"
        return {"batch": self._batches[place]}
