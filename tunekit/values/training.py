"""What a training stage is given, what it tells while it runs, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .machine import Machine, Precision
from .model import ModelBundle
from .processes import Processes
from .tokens import Prepared

if TYPE_CHECKING:
    from .plan import PlannedPlugin

MEASURED = frozenset({"tokens_per_second", "supervised_tokens_per_second", "matrix_share", "peak_memory_bytes"})
"""Metrics that measure time and memory: they differ between runs whose other numbers are the same."""

EventKind = Literal["started", "step", "evaluated", "saved", "finished"]


class Calls(Protocol):
    """How a plugin calls hooks, its own published ones included: one hook on one plugin at a time, recorded."""

    def own(self, hook: str, **arguments: Any) -> Any:
        """Call the one planned plugin that answers `hook`; PlanError where none does."""
        ...

    def chain(self, hook: str, argument: str, value: Any, **arguments: Any) -> Any:
        """Fold `value` through every planned plugin that answers `hook`, in plan order."""
        ...

    def each(self, hook: str, **arguments: Any) -> Iterator[tuple[PlannedPlugin, Any]]:
        """Call every planned plugin that answers `hook` with the same arguments; each result with its plugin."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a stage.

    `metrics` are plain numbers; `step` counts optimiser steps from 1 and `total_steps` is known from the start.
    """

    kind: EventKind
    stage: str
    step: int = 0
    total_steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class Context:
    """What a plugin may know of the run it is part of.

    `folder` is the run folder, `emit` tells all watchers, `processes` are those that carry out the run. `data`
    gives what an adapter that is being attached will learn from, to those that begin by looking at it; None where
    nothing is to be trained.
    """

    calls: Calls
    machine: Machine
    precision: Precision
    folder: Path
    seed: int
    emit: Callable[[Event], None]
    processes: Processes = field(default_factory=Processes)
    data: Callable[[], Prepared] | None = None


@dataclass(frozen=True)
class StageContext(Context):
    """The context of one stage.

    `folder` is the stage's own folder inside the run; `key` is the recipe key of the stage (`stages.0.sft`). `resume`
    asks to go on from the newest complete checkpoint in it, if there is one. `adapters` are the folders of the adapters
    that earlier stages of the run have left, by their names. `choices` are what the plan chose for the stage from its
    estimate.
    """

    name: str = ""
    key: str = ""
    resume: bool = False
    adapters: Mapping[str, Path] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """What a stage asks of an optimiser. The schedule multiplies `learning_rate`."""

    learning_rate: float
    weight_decay: float = 0.0
    total_steps: int = 0


@dataclass(frozen=True, slots=True)
class Artefact:
    """Something a stage leaves in the run folder: an `adapter`, a whole `model`, a `picture` or a `report`."""

    kind: Literal["adapter", "model", "picture", "report"]
    path: Path


@dataclass(frozen=True)
class StageResult:
    """The model after the stage, its closing metrics, facts for the record, and what it left behind.

    `held_out` are the numbers of items, from 0 in the order of the prepared data, that were not trained on; a few
    hundred at most: exports are compared on them.
    """

    bundle: ModelBundle
    metrics: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    artefacts: tuple[Artefact, ...] = ()
    held_out: tuple[int, ...] = ()
