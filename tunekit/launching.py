"""Between the process that was asked for a run and those that carry it out: places, events, errors."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import errors
from .errors import PlanError, Problem, ProblemsError, TunekitError
from .record import append_line, read_json, write_json
from .values import Event, Launch, Plan

FOLDER = "processes"
EVENTS = "events.jsonl"


def place_here() -> tuple[int, int] | None:
    """Rank and number of the processes this one was started with, as torchrun tells them; None where nothing does."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def first_here() -> bool:
    """Whether this process keeps the record and talks to the user: the first of those it was started with, or alone."""
    place = place_here()
    return place is None or place[0] == 0


def refuse_crowd() -> None:
    """Raise PlanError where this process is one of several that no plugin was asked to bring together."""
    place = place_here()
    if place is not None and place[1] > 1:
        what = f"names no plugin for several processes, and this is one of {place[1]} (WORLD_SIZE)"
        raise PlanError([Problem("use", f"{what}: each would train alone", "name one, such as `ddp`, or start one")])


def refuse_what_stays_here(plan: Plan, loaded: bool) -> None:
    """Raise PlanError for what only this process has, and others cannot import or open: classes, a loaded model."""
    if place_here() is not None:
        return
    what, remedy = "is a class of this Python process, and others cannot import it", "name its file: `./my.py:MyPlugin`"
    found = [Problem(each.key, f"{each.name} {what}", remedy) for each in plan.plugins if each.version == "local"]
    if loaded:
        stays = "the model is loaded in this process, and others cannot have it"
        found.append(Problem("use", stays, "run the recipe on its own, or without a plugin for several processes"))
    if found:
        raise PlanError(found)


def make_launch(folder: Path, watchers: Sequence[Callable[[Event], None]]) -> Launch:
    """Make what brings the run in `folder` to other processes, or this process to its others."""
    command = (sys.executable, "-m", "tunekit.launched", str(folder.resolve()))
    place = place_here()
    if place is not None:
        return Launch(folder, command, lambda: None, lambda: None, *place)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    (folder / FOLDER).mkdir()
    return Launch(folder, command, _Follower(folder / FOLDER / EVENTS, watchers), lambda: _raise_first(folder))


class EventLog:
    """A watcher that writes events where the process that was asked for the run reads them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FOLDER / EVENTS

    def __call__(self, event: Event) -> None:
        """Take one event."""
        append_line(self.path, asdict(event))


class _Follower:
    """Tells watchers of the events that another process writes, each once."""

    def __init__(self, path: Path, watchers: Sequence[Callable[[Event], None]]) -> None:
        self.path, self.watchers, self.told = path, watchers, 0

    def __call__(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.told)
            whole = file.read().rpartition(b"\n")[0]  # the last line may be half written
        self.told += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            self._tell(json.loads(line))

    def _tell(self, told: dict[str, Any]) -> None:
        metrics = {name: float(value) for name, value in told.pop("metrics").items()}  # NaN is written as its name
        for watcher in self.watchers:
            watcher(Event(**told, metrics=metrics))


def tell_error(folder: Path, rank: int, error: BaseException) -> None:
    """Write down what a process of a run has raised."""
    told = {"at": time.time_ns(), "kind": type(error).__name__, "message": str(error)}
    if isinstance(error, ProblemsError):
        told["problems"] = [[problem.where, problem.message, problem.remedy] for problem in error.problems]
    write_json(folder / FOLDER / f"error-{rank}.json", told)


def _raise_first(folder: Path) -> None:
    """Raise what was written down first, as an error of its own kind."""
    told = [read_json(path) for path in (folder / FOLDER).glob("error-*.json")]
    if not told:
        return
    first = min(told, key=lambda error: error["at"])
    kind = getattr(errors, first["kind"], None)
    if kind is None or not issubclass(kind, TunekitError) or kind in _COMPOSED:
        where = f"; what it printed is in {folder / FOLDER}"
        raise TunekitError(first["message"] if kind in _COMPOSED else f"{first['kind']}: {first['message']}{where}")
    if issubclass(kind, ProblemsError):
        raise kind([Problem(*problem) for problem in first["problems"]])
    raise kind(first["message"])


_COMPOSED = (errors.HookCallError, errors.UnknownPluginError)
"""Errors that compose their message themselves."""
