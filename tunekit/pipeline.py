"""The front door: describe a fine-tuning, look at its plan, run it, open it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import engine, opening
from .catalog import Catalog
from .certify import Certificate, certify
from .data import DataReport, report_data
from .engine import Watcher
from .errors import Problem, RecipeError, RunFolderError
from .plan import add_estimate, make_plan
from .plugin import Plugin
from .recipe import Recipe, from_code, from_file
from .record import Record
from .run import Run, Talk
from .values import Plan


class Pipeline:
    """A fine-tuning from model and data to stages.

    `use` takes plugin objects (`Lora(rank=8)`) or names; `stages` takes stage plugins (`Sft(epochs=1)`); `data` takes a
    path, a mapping with `path` and options, rows, or a list of these; `export` takes export plugins (`Merged()`) or
    names, for what is exported at the end. Nothing happens until `plan()` or `run()`.
    """

    def __init__(
        self,
        model: str,
        data: Any = None,
        use: Sequence[Plugin[Any] | str] | Mapping[str, Any] = (),
        stages: Sequence[Plugin[Any] | str | Mapping[str, Any]] = (),
        output: str | Path | None = None,
        seed: int = 0,
        export: Sequence[Plugin[Any] | str | Mapping[str, Any]] = (),
    ) -> None:
        self.catalog = Catalog.discover()
        self.recipe = from_code(model, data, use, stages, output, seed, self.catalog, export)

    @classmethod
    def from_file(cls, path: str | Path, overrides: Iterable[str] = ()) -> Pipeline:
        """Read a recipe file, with `key.path=value` overrides over it."""
        return cls.from_recipe(from_file(path, overrides))

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Pipeline:
        """Make a pipeline of a recipe."""
        pipeline = object.__new__(cls)
        pipeline.catalog, pipeline.recipe = Catalog.discover(), recipe
        return pipeline

    def plan(self, estimate: bool = True) -> Plan:
        """Work out what a run will do, or raise PlanError with everything that is wrong.

        `estimate` adds parameter counts, the look of the data, and expected memory; it imports torch.
        """
        plan = make_plan(self.recipe, self.catalog)
        return add_estimate(plan) if estimate else plan

    def data(self, stage: int | str | None = None, limit: int | None = None) -> DataReport:
        """Prepare the data of every stage, or of one by name or number from 0, to look at; no weight is loaded.

        `limit`: only the first so many rows of each source. Rows that cannot be used are shown, not raised; `ok` says
        whether a run would start.
        """
        return report_data(make_plan(self.recipe, self.catalog), stage, limit)

    def explain(self) -> str:
        """The plan as plain text."""
        from rich.console import Console

        console = Console(width=120, no_color=True)
        with console.capture() as captured:
            console.print(self.plan(estimate=False))
        return captured.get()

    def run(self, output: str | Path | None = None, watchers: Sequence[Watcher] = ()) -> Run:
        """Plan, then run, into the folder `output` (else the recipe's). `watchers` are called with every event."""
        folder = output or self.recipe.output
        if folder is None:
            raise RecipeError([Problem("output", "is missing", "say where the run goes: `output: runs/demo`")])
        return engine.start(self.plan(), folder, watchers)

    def resume(self, folder: str | Path, watchers: Sequence[Watcher] = ()) -> Run:
        """Go on with a run of this pipeline that was interrupted, to the numbers it would have reached."""
        recipe = Record.open(folder).continuing(self.recipe)
        return engine.resume(add_estimate(make_plan(recipe, self.catalog)), folder, watchers)

    def certify(self, folder: str | Path, steps: int = 2) -> Certificate:
        """Show that this recipe, killed after `steps` in each stage and resumed, reaches the bits of one run.

        Takes a process of its own, about 4 `steps` + 2 steps of each stage, and a folder for both runs and the report.
        """
        return certify(self.recipe, folder, steps)


def open_run(folder: str | Path, adapter: str | None = None) -> Run:
    """Open a finished run: its record, and its model to talk to, with the adapter of this name or with the final one.

    Raises RunFolderError where the run has left no adapter of this name.
    """
    record = Record.open(folder)
    plan = make_plan(record.recipe, purpose="open")
    if adapter is not None and adapter not in record.adapters:
        known = ", ".join(record.adapters) or "none"
        raise RunFolderError(f"{folder} holds no adapter named {adapter!r}", f"it holds {known}")
    adapters = opening.open_model(plan, record.folder, record.artefact("model"))
    name = plan.final_adapter if adapter is None else adapter
    adapters.use(name, record.adapters.get(name))
    return Run(plan, record, adapters, adapters.context)


def open_model(model: str, use: Sequence[Plugin[Any] | str] | Mapping[str, Any] = ()) -> Talk:
    """Load a model as it is, untrained, to talk to it."""
    plan = make_plan(from_code(model, use=use), purpose="infer")
    adapters = opening.open_model(plan, Path())
    adapters.use(plan.final_adapter)
    return Talk(adapters, adapters.context, plan.final_adapter)


def resume_run(folder: str | Path, watchers: Sequence[Watcher] = ()) -> Run:
    """Go on with an interrupted run from its record alone."""
    return Pipeline.from_recipe(Record.open(folder).recipe).resume(folder, watchers)
