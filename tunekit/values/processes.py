"""The processes that carry out a run: one, or several that go in step; and what brings a run to others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class Processes:
    """The place of this process among those that carry out a run. As it stands here: alone.

    `rank` counts from 0, and `count` is at least 1. The first process keeps the record and tells the watchers; what one
    process has to do before the others, it does inside `first_alone`.
    """

    rank: int = 0
    count: int = 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}()" if self.count == 1 else f"{type(self).__name__}({self.rank} of {self.count})"

    @property
    def first(self) -> bool:
        """Whether this process keeps the record."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""

    def close(self) -> None:
        """Part from the others: the run is over."""

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process go through alone, and the others after it. Where it fails, they go no further."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


@dataclass(frozen=True)
class Launch:
    """A run that waits to be carried out in other processes.

    Each of them executes `command`, with `RANK`, `WORLD_SIZE` and `LOCAL_RANK` in its environment as torchrun sets
    them, and a standard input that stays open for as long as the run is wanted. `report` passes on to the watchers what
    has happened since it was last called: call it while waiting. `stop_on_error` raises what the process that failed
    first has raised, and nothing where none has. `rank` is None in the process that was asked for the run, and this
    process's own among `count` several.
    """

    folder: Path
    command: tuple[str, ...]
    report: Callable[[], None]
    stop_on_error: Callable[[], None]
    rank: int | None = None
    count: int = 1
