"""Carry out a plan: the phases in order, each call made through `calls`, each outcome kept in the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .adapters import NamedAdapters
from .calls import Calls
from .data import first_data, load_tokenizer, open_examples, preparing
from .errors import InterruptedRunError, RunFolderError
from .launching import EventLog, first_here, make_launch, refuse_crowd, refuse_what_stays_here
from .local import identity
from .opening import load, open_model
from .plan import add_estimate, make_plan, note_base
from .recipe import Recipe, Use
from .record import Onlooker, Record
from .run import Run
from .values import (
    Context,
    Event,
    ModelBundle,
    Plan,
    Prepared,
    Processes,
    StageContext,
    StagePlan,
    StageResult,
)

Watcher = Callable[[Event], None]


def start(
    plan: Plan, folder: str | Path, watchers: Sequence[Watcher] = (), adapters: NamedAdapters | None = None
) -> Run:
    """Carry out a plan in a fresh run folder, on a model that is loaded already or on one of its own."""
    record = Record.create(folder, plan) if first_here() else Onlooker(Path(folder))
    return _Engine(plan, record, watchers, adapters).run()


def resume(plan: Plan, folder: str | Path, watchers: Sequence[Watcher] = ()) -> Run:
    """Go on with the run in `folder`: finished stages are kept, the next goes on from its newest checkpoint."""
    record = (Record if first_here() else Onlooker).open(folder)
    if _essence(record.recipe) != _essence(plan.recipe):
        raise RunFolderError(
            f"{folder} holds a run of another recipe", "resume it with its own, or choose another folder"
        )
    record.set_status("running")
    return _Engine(plan, record, watchers).run()


def take_part(folder: Path) -> None:
    """Carry out the run in `folder` together with the processes that this one was started with.

    The process that was asked for the run has made the folder, and reads there what has become of it.
    """
    first = first_here()
    record = (Record if first else Onlooker).open(folder)
    plan = replace(add_estimate(make_plan(record.recipe)), exports=())  # the process that was asked for the run exports
    _Engine(plan, record, [EventLog(folder)] if first else []).run()


def _essence(recipe: Recipe) -> tuple[object, ...]:
    """What must be equal for a run to go on; where the data lies may change, its path may be written otherwise."""
    stages = tuple(
        (identity(stage.name), dict(stage.options), _plugins(stage.use), stage.adapter.name) for stage in recipe.stages
    )
    return recipe.model, _plugins(recipe.use), stages, recipe.seed


def _plugins(uses: Sequence[Use]) -> list[tuple[str, dict[str, Any]]]:
    return [(identity(use.name), dict(use.options)) for use in uses]


class _Engine:
    """One run of one plan."""

    def __init__(
        self, plan: Plan, record: Record, watchers: Sequence[Watcher], adapters: NamedAdapters | None = None
    ) -> None:
        self.plan = plan
        self.given = adapters
        self.record = record
        self.watchers = watchers
        self.calls = Calls(plan.plugins, record.call)
        self.context = Context(
            self.calls.for_run(), plan.machine, plan.precision, record.folder, plan.recipe.seed, self._emit
        )

    def run(self) -> Run:
        adapters: NamedAdapters | None = None
        with self._status():
            processes = self._launch()
            if processes is not None:
                self.context = replace(self.context, processes=processes)
                adapters = self._carry_out()
        if processes is not None:
            processes.wait()
            processes.close()
        run = Run(self.plan, self.record, adapters or self._reopened, self.context)
        if self.plan.exports and first_here():
            with self._status():
                run.export_planned()
        return run

    def _launch(self) -> Processes | None:
        """Bring the run to where it happens; None where it has happened there."""
        if self.calls.owner("tunekit_launch") is None:
            refuse_crowd()
            return Processes()
        refuse_what_stays_here(self.plan, self.given is not None)
        launch = make_launch(self.record.folder, self.watchers)
        processes: Processes | None = self.calls.own("tunekit_launch", plan=self.plan, launch=launch)
        if processes is None:
            launch.report()
            for stage in self.record.finished_stages():
                self._note_memory(stage["metrics"])
        return processes

    def _carry_out(self) -> NamedAdapters | None:
        """Prepare all data, then train all stages that are left; None where the model was left in parts.

        What several processes have trained is read anew for the next stage: each may hold a part of it only.
        """
        tokenizer, reports = load_tokenizer(self.context, self.plan.load_request)
        waiting = self._waiting()
        data = {stage.index: self._prepare(stage, tokenizer) for stage in waiting}
        adapters = self._open(tokenizer) if self.given is None else self.given
        self.record.reports({**reports, **adapters.patched})
        if self.context.processes.count == 1:
            self._train_all(adapters, waiting, data)
            adapters.use(self.plan.final_adapter)
            return adapters
        for number, stage in enumerate(waiting):
            adapters = self._open(tokenizer) if number else adapters
            self._train_all(adapters, [stage], data)
        return None

    def _train_all(self, adapters: NamedAdapters, stages: Sequence[StagePlan], data: Mapping[int, Prepared]) -> None:
        """Bring back what finished stages have left, then train these, each on its adapter."""
        with adapters.serving(self.context, self.plan.stages):
            for name, folder in self.record.adapters.items():
                adapters.use(name, folder)
            for stage in stages:
                bundle = adapters.use(stage.adapter, stage.start, partial(data.__getitem__, stage.index))
                result = self._train(stage, bundle, data[stage.index])
                adapters.keep(result.bundle, self.record.adapters.get(stage.adapter))

    def _reopened(self) -> NamedAdapters:
        """The model as the run has left it, for asking."""
        record, name = self.record, self.plan.final_adapter
        adapters = open_model(self.plan, record.folder, record.artefact("model"))
        adapters.use(name, record.adapters.get(name) if name else None)
        return adapters

    def _waiting(self) -> list[StagePlan]:
        done = {stage["index"] for stage in self.record.finished_stages()}
        return [stage for stage in self.plan.stages if stage.index not in done]

    def _prepare(self, stage: StagePlan, tokenizer: Any) -> Prepared:
        """Read, format and tokenise all data of a stage: before the weights, so that a bad row costs nothing."""
        examples = open_examples(self.calls.for_stage(stage.index), stage.sources, stage.mixing)
        with self.context.processes.first_alone():
            prepared: Prepared = self.calls.one(
                stage.plugin, "tunekit_prepare_data", data=examples, tokenizer=tokenizer, context=self._stage(stage)
            )
        self.record.data(self.plan.title(stage.index), prepared.account)
        if not stage.mixing.streaming:
            prepared.account.stop_on_problems()
        return prepared

    def _open(self, tokenizer: Any) -> NamedAdapters:
        """Load the base as a finished stage that trained all of it left it, or as the recipe names it."""
        model = self.record.artefact("model")
        data = first_data(self.plan, self.calls, tokenizer)
        request = replace(self.plan.load_request, tokenizer=tokenizer, data=data)
        if model is not None:
            request = replace(request, model=str(model))
        bundle, patched = load(self.context, request, self.plan)
        return NamedAdapters(bundle, self.context, self.plan.stages, patched)

    def _train(self, stage: StagePlan, bundle: ModelBundle, data: Prepared) -> StageResult:
        context = self._stage(stage)
        context = replace(context, resume=context.folder.exists())
        context.folder.mkdir(parents=True, exist_ok=True)
        result: StageResult = self.calls.one(
            stage.plugin, "tunekit_train_stage", bundle=bundle, data=data, context=context
        )
        self.record.data(self.plan.title(stage.index), data.account)
        for artefact in result.artefacts:
            if artefact.kind == "adapter" and self.context.processes.first:
                note_base(artefact.path, self.plan.plugins)
        self.record.finish_stage(stage, result)
        self._note_memory(result.metrics)
        self.context.processes.wait()  # the others read in the record what this stage has left
        return result

    def _stage(self, stage: StagePlan) -> StageContext:
        return replace(
            preparing(self.plan, self.calls, stage),
            folder=self.record.stage_folder(stage.index, stage.name),
            emit=partial(self._emit, index=stage.index),
            adapters=self.record.adapters,
            choices=self.plan.estimate.choices.get(stage.key, {}) if self.plan.estimate else {},
            processes=self.context.processes,
        )

    def _note_memory(self, metrics: Mapping[str, float]) -> None:
        """Write the measured peak next to the estimate."""
        measured = metrics.get("peak_memory_bytes")
        if measured is not None and self.plan.estimate is not None:
            estimated = self.plan.estimate.peak_bytes
            ratio = round(estimated / measured, 3) if measured else None
            self.record.note(memory={"estimated": estimated, "measured": int(measured), "ratio": ratio})

    def _emit(self, event: Event, index: int = 0) -> None:
        if not self.context.processes.first:
            return
        self.record.event(event, index)
        for watcher in self.watchers:
            try:
                watcher(event)
            except Exception as error:
                self.record.warn(f"a watcher failed: {type(error).__name__}: {error}")
        self.calls.watch("tunekit_event", self.record.warn, event=event)

    @contextmanager
    def _status(self) -> Iterator[None]:
        """Keep the run's status true, however it ends."""
        try:
            yield
        except KeyboardInterrupt:
            self.record.set_status("interrupted", "stopped by the user")
            remedy = f"continue it with `tunekit resume {self.record.folder}`"
            raise InterruptedRunError("the run was stopped", remedy) from None
        except InterruptedRunError as error:
            self.record.set_status("interrupted", str(error))
            raise
        except BaseException as error:
            self.record.set_status("failed", f"{type(error).__name__}: {error}")
            raise
        else:
            self.record.set_status("finished")
