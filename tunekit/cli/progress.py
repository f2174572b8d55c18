"""The progress bar of a run: a watcher that draws its events."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..values import Event


class ProgressBar:
    """Draws stage, step, loss, tokens per second and the time left. Use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if event.message:
            self._progress.console.print(f"[dim]{event.stage}:[/dim] {event.message}")
        if event.kind == "started" and event.total_steps:
            self._tasks[event.stage] = self._progress.add_task(
                event.stage, total=event.total_steps, completed=event.step, numbers=""
            )
        elif event.kind == "step" and event.stage in self._tasks:
            self._progress.update(self._tasks[event.stage], completed=event.step, numbers=_numbers(event))
        elif event.kind == "evaluated":
            metrics = "  ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
            self._progress.console.print(f"[dim]{event.stage}, step {event.step}:[/dim] {metrics}")


def _numbers(event: Event) -> str:
    loss = event.metrics.get("loss")
    speed = event.metrics.get("tokens_per_second")
    parts = [f"loss {loss:.4f}" if loss is not None else "", f"{speed:,.0f} tokens/s" if speed is not None else ""]
    return "  ".join(part for part in parts if part)
