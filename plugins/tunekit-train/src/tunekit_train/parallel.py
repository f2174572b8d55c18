"""How a stage is trained in several processes, for the same numbers as in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch.utils.data import Sampler

from tunekit.errors import PlanError, Problem
from tunekit.values import Processes, StageContext

from .checks import ONE_CARD
from .tricks import TRICKS, Trick

if TYPE_CHECKING:
    from .job import Job

__all__ = ["TRICKS", "Counted", "Parallel", "Trick", "Turns", "parallel_of"]


class Parallel(Processes):
    """A way to train in several processes. As it stands here: in one.

    Each process runs the same steps on micro-batches of its own, and gradients are averaged over all. A plugin that
    answers `tunekit_launch` returns one.
    """

    name: str = "alone"

    def obstacle(self, trick: Trick) -> str | None:
        """Why this trick does not hold here, or None where it does."""
        return None

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in their order, in every process. Plain Python values."""
        return [value]

    def arguments(self, job: Job) -> dict[str, Any]:
        """What `TrainingArguments` is given besides."""
        return {}

    def cut_(self, model: Any) -> None:
        """Cut the whole model into the parts that each process holds. Called before the optimiser is made."""

    def optimized_(self, optimizer: Any) -> None:
        """Take notice of the optimiser that has been made for the parts."""

    def accelerate_(self, accelerator: Any) -> None:
        """Have accelerate prepare the model as this way wants it. Called when it has just been made."""

    def mistake(self, prepared: Any) -> str | None:
        """What the prepared model is instead of what was asked for, or None where it is that."""
        wrapped = type(prepared).__name__
        return wrapped if wrapped in {"DataParallel", "DistributedDataParallel", "DeepSpeedEngine"} else None

    def remedy(self, mistake: str) -> str:
        """What to do about a model that was prepared as something else."""
        settings = "look for settings of accelerate or DeepSpeed in the environment"
        return ONE_CARD if mistake == "DataParallel" else settings

    def whole(self, model: Any) -> AbstractContextManager[Any]:
        """Have all weights that train, or all there are where all train, in this process as long as the context is."""
        return nullcontext()

    def saving(self, model: Any, optimizer: Any) -> AbstractContextManager[Any]:
        """Have whole in the first process what Trainer writes into a checkpoint."""
        return nullcontext()


def parallel_of(context: StageContext) -> Parallel:
    """How this stage is trained. PlanError where it has several processes and none knows how to train in them."""
    processes = context.processes
    if isinstance(processes, Parallel):
        return processes
    if processes.count > 1:
        what = f"brings together {processes.count} processes, but does not say how they train one model"
        raise PlanError([Problem("use", f"the launcher {what}", "name `ddp`, `zero` or `fsdp` instead")])
    return Parallel()


class Turns(Sampler[list[tuple[int, bool]]]):
    """The batches of one of several processes: of each `count` in a row it takes one, the first process the last.

    So the first process's place in a stream is behind all of a turn. Where the last turn has too few, who is left over
    takes a batch a second time, and it counts for nothing: processes that go in step run equally often.
    """

    def __init__(self, batches: Any, processes: Processes) -> None:
        self.batch_sampler, self.count = batches, processes.count
        self.behind = processes.count - 1 - processes.rank
        self.batch_size, self.drop_last = batches.batch_size, False  # accelerate reads these

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the batches."""
        if hasattr(self.batch_sampler, "set_epoch"):
            self.batch_sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batch_sampler) // self.count)

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        turn: list[list[int]] = []
        for batch in self.batch_sampler:
            turn.append(batch)
            if len(turn) == self.count:
                yield [(at, True) for at in turn[self.behind]]
                turn = []
        if turn:
            counts = self.behind < len(turn)
            yield [(at, counts) for at in turn[self.behind if counts else 0]]


class Counted:
    """Items, each with whether it counts."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: tuple[int, bool]) -> tuple[Any, bool]:
        return self.items[at[0]], at[1]
