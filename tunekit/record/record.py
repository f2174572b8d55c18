"""The run folder: all that is needed to repeat, resume and explain a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml

from ..calls import CallRecord
from ..data.bounds import bounded
from ..errors import Problem, RecipeError, RunFolderError
from ..local import LocalPlugin
from ..recipe import Recipe, Stage, Use, from_mapping, leaves
from ..recipe.model import source_mapping
from ..recipe.reading import parse_yaml
from ..values import DEFAULT_ADAPTER, Account, Artefact, Event, Plan, Report, Source, StagePlan, StageResult
from .files import append_line, plain, read_json, read_lines, write_json, write_lines, write_text

Status = Literal["running", "finished", "interrupted", "failed"]
STATE = "run.json"


class Record:
    """One run folder.

    `run.json` (status, stages, artefacts, measured memory), `recipe.yaml`, `origins.json`, `plan.json`, `machine.json`,
    `versions.json`, `data.json`, `reports.json`, and, line by line, `metrics.jsonl`, `calls.jsonl`, `warnings.jsonl`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: str | Path, plan: Plan) -> Record:
        """Start the record of a run. RunFolderError where the folder cannot be written or holds something already."""
        record = cls(Path(folder))
        record._claim()
        recipe = record._keep_all(plan.recipe)
        record._state_({"status": "running", "started": _now(), "stages": [], "output": str(folder)})
        write_text(record.folder / "recipe.yaml", yaml.safe_dump(recipe.to_mapping(), sort_keys=False))
        write_json(record.folder / "origins.json", origins(plan))
        write_json(record.folder / "plan.json", plan_mapping(plan))
        write_json(record.folder / "machine.json", plan.machine)
        write_json(record.folder / "versions.json", plan.versions)
        return record

    @classmethod
    def open(cls, folder: str | Path) -> Record:
        """Open the record of an earlier run. RunFolderError where there is none."""
        record = cls(Path(folder))
        if not (record.folder / STATE).exists():
            raise RunFolderError(f"{folder} holds no run", "name the output folder of one")
        return record

    @property
    def state(self) -> dict[str, Any]:
        """What `run.json` says."""
        return dict(read_json(self.folder / STATE))

    @property
    def recipe(self) -> Recipe:
        """The recipe of this run, read back, as the run goes on with it."""
        return self.continuing(self.given_recipe)

    @property
    def given_recipe(self) -> Recipe:
        """The recipe of this run, read back, as it was begun with."""
        path = self.folder / "recipe.yaml"
        if not path.exists():
            raise RunFolderError(f"{path} is missing", "start the run again in another folder")
        try:
            return from_mapping(parse_yaml(path.read_text(encoding="utf-8")))
        except RecipeError as error:
            raise RecipeError([Problem(str(path), str(error))]) from error

    def continuing(self, recipe: Recipe) -> Recipe:
        """A recipe as this run goes on with it.

        Its output is where the run lies now. An adapter that a stage has finished is the run's own from then on: the
        folder that it began with may be gone by now, or hold another.
        """
        stages = tuple(self._begun(stage) for stage in recipe.stages)
        return replace(recipe, stages=stages, output=str(self.folder))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All metric lines, oldest first."""
        return list(read_lines(self.folder / "metrics.jsonl"))

    @property
    def accounts(self) -> dict[str, Account]:
        """The account of each stage's data, by the stage's name; none before any data was prepared."""
        path = self.folder / "data.json"
        known = read_json(path) if path.exists() else {}
        return {name: Account.from_mapping(sources) for name, sources in known.items()}

    def stage_folder(self, index: int, name: str) -> Path:
        """The folder of one stage: `stage-1-sft`."""
        return self.folder / f"stage-{index + 1}-{name}"

    def finished_stages(self) -> list[dict[str, Any]]:
        """What `run.json` keeps of each finished stage, in order."""
        return list(self.state["stages"])

    def artefact(self, kind: str) -> Path | None:
        """The newest artefact of this kind, or None."""
        found = [item for stage in self.finished_stages() for item in stage["artefacts"] if item["kind"] == kind]
        return self.folder / found[-1]["path"] if found else None

    @property
    def adapters(self) -> dict[str, Path]:
        """The newest folder of each adapter that the stages have trained, by its name."""
        return {
            stage.get("adapter", DEFAULT_ADAPTER): self.folder / item["path"]
            for stage in self.finished_stages()
            for item in stage["artefacts"]
            if item["kind"] == "adapter"
        }

    @property
    def exports(self) -> dict[str, Path]:
        """The folder of each export that was made of the run, by its name."""
        return {name: self.folder / made["folder"] for name, made in self.state.get("exports", {}).items()}

    def note_export(self, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
        """Note that an export is done, and how it compares."""
        made = {**self.state.get("exports", {}), name: {"folder": self._inside(folder), **plain(facts)}}
        self.note(exports=made)

    def set_status(self, status: Status, message: str = "") -> None:
        """Note how the run stands; `message` says why where it did not finish."""
        self._state_({**self.state, "status": status, "message": message, f"{status}_at": _now()})

    def finish_stage(self, stage: StagePlan, result: StageResult) -> None:
        """Note that a stage is done, with what it left; from here on it is never run again."""
        noted = {
            "index": stage.index,
            "name": stage.name,
            "adapter": stage.adapter,
            "metrics": plain(result.metrics),
            "facts": plain(result.facts),
            "artefacts": [self._artefact(artefact) for artefact in result.artefacts],
            "held_out": list(result.held_out),
        }
        self._state_({**self.state, "stages": [*self.finished_stages(), noted]})

    def note(self, **facts: Any) -> None:
        """Add facts to `run.json`."""
        self._state_({**self.state, **plain(facts)})

    def event(self, event: Event, index: int = 0) -> None:
        """Write an event of the stage with this index, if it carries numbers.

        A stage that starts again at a step takes back what came after it.
        """
        if event.kind == "started":
            self._cut_back(index, event.step)
        if event.metrics:
            append_line(
                self.folder / "metrics.jsonl",
                {"stage": event.stage, "index": index, "kind": event.kind, "step": event.step, **event.metrics},
            )

    def call(self, call: CallRecord) -> None:
        """Write one hook call."""
        append_line(self.folder / "calls.jsonl", call)

    def warn(self, message: str) -> None:
        """Write a warning."""
        append_line(self.folder / "warnings.jsonl", {"at": _now(), "message": message})

    def data(self, stage: str, account: Account) -> None:
        """Write the account of a stage's data."""
        path = self.folder / "data.json"
        known = read_json(path) if path.exists() else {}
        write_json(path, {**known, stage: bounded(account).to_mapping()})

    def reports(self, reports: Mapping[str, Report]) -> None:
        """Write what each patch did."""
        write_json(
            self.folder / "reports.json",
            {name: {"summary": report.summary, "details": report.details} for name, report in reports.items()},
        )

    def _claim(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise RunFolderError(f"output {self.folder} is a file", "name a folder")
        if (self.folder / STATE).exists():
            status = self.state["status"]
            ways = [f"continue it with `tunekit resume {self.folder}`"] if status != "finished" else []
            remedy = ", or ".join([*ways, "choose another output folder"])
            raise RunFolderError(f"output {self.folder} holds another run ({status})", remedy)
        if self.folder.exists() and any(self.folder.iterdir()):
            raise RunFolderError(f"output {self.folder} is not empty and holds no run", "choose another output folder")

    def _keep_all(self, recipe: Recipe) -> Recipe:
        """Store rows that were given in Python and plugins that are files, so that the recorded recipe is complete."""
        return replace(
            recipe,
            data=self._kept_data(recipe.data),
            use=self._kept_plugins(recipe.use),
            stages=tuple(self._kept_stage(stage) for stage in recipe.stages),
            exports=self._kept_plugins(recipe.exports),
            output=str(self.folder),
        )

    def _kept_stage(self, stage: Stage) -> Stage:
        data = None if stage.data is None else self._kept_data(stage.data)
        adapter = stage.adapter
        if adapter.start is not None:
            adapter = adapter.model_copy(update={"start": str(Path(adapter.start).resolve())})
        use = self._kept_plugins(stage.use)
        return replace(stage, name=self._kept(stage.name), data=data, use=use, adapter=adapter)

    def _begun(self, stage: Stage) -> Stage:
        """The stage; where it began with a saved adapter, with what the run has made of that, if a stage is done."""
        if stage.adapter.start is None or (made := self.adapters.get(stage.adapter.name)) is None:
            return stage
        return replace(stage, adapter=stage.adapter.model_copy(update={"start": str(made)}))

    def _kept_data(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(self._keep(source) for source in sources)

    def _kept_plugins(self, uses: tuple[Use, ...]) -> tuple[Use, ...]:
        return tuple(replace(use, name=self._kept(use.name)) for use in uses)

    def _kept(self, name: str) -> str:
        """Copy a plugin that is a file of the user's own into the run folder, and name the copy."""
        local = LocalPlugin.parse(name)
        if local is None:
            return name
        copy = self.folder / "plugins" / f"{local.path.stem}_{local.version}.py"
        write_text(copy, local.path.read_text(encoding="utf-8"))
        return str(replace(local, path=copy.resolve()))

    def _keep(self, source: Source) -> Source:
        if source.rows is None:
            return source if source.path is None or not Path(source.path).exists() else _absolute(source)
        path = self.folder / "data" / f"{source.key}.jsonl"
        # A slice of the split is cut from all rows; without one, rows past the limit are never read.
        rows = source.rows() if callable(source.rows) else source.rows
        rows = islice(rows, source.limit if source.split == "train" else None)
        write_lines(path, (json.dumps(plain(row), ensure_ascii=False) for row in rows))
        return _absolute(replace(source, rows=None, path=str(path)))

    def _cut_back(self, index: int, step: int) -> None:
        path = self.folder / "metrics.jsonl"
        lines = list(read_lines(path))
        kept = [line for line in lines if line["index"] != index or line["step"] <= step]
        if path.exists():
            write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def _artefact(self, artefact: Artefact) -> dict[str, str]:
        return {"kind": artefact.kind, "path": self._inside(artefact.path)}

    def _inside(self, path: Path) -> str:
        """A path as the record keeps it: from the run folder on where it is inside."""
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path.resolve())

    def _state_(self, state: dict[str, Any]) -> None:
        write_json(self.folder / STATE, state)


def origins(plan: Plan) -> dict[str, dict[str, Any]]:
    """Every value of the recipe with where it came from, the defaults of all plugins included."""
    given = dict(leaves(plan.recipe.without_rows().to_mapping()))
    result = {
        path: {"value": plain(value), "origin": plan.recipe.origins.get(path, "default")}
        for path, value in given.items()
    }
    for planned in (*plan.plugins, *(export.plugin for export in plan.exports)):
        for path, value in leaves(planned.plugin.config.model_dump(mode="json"), planned.key or f"use.{planned.name}"):
            if path not in given and value != {}:
                result[path] = {"value": plain(value), "origin": "default"}
    return result


def plan_mapping(plan: Plan) -> dict[str, Any]:
    """The plan as plain data, for the record and for `tunekit plan --json`."""
    return {
        "model": plan.recipe.model,
        "machine": plain(plan.machine),
        "precision": plain(plan.precision),
        "owners": dict(plan.owners),
        "plugins": [
            {
                "name": planned.name,
                "distribution": planned.distribution,
                "version": planned.version,
                "why": planned.why,
                "key": planned.key,
                "stage": planned.stage,
                "options": planned.plugin.config.model_dump(mode="json"),
            }
            for planned in plan.plugins
        ],
        "steps": [plain(step) for step in plan.steps],
        "stages": [
            {
                "name": stage.name,
                "data": [source_mapping(source) for source in stage.sources if source.path],
                "adapter": stage.adapter,
                "start": None if stage.start is None else str(stage.start),
            }
            for stage in plan.stages
        ],
        "exports": [
            {
                "name": export.name,
                "target": export.plugin.name,
                "options": export.plugin.plugin.config.model_dump(mode="json"),
            }
            for export in plan.exports
        ],
        "versions": dict(plan.versions),
        "estimate": None if plan.estimate is None else estimate_mapping(plan),
        "notes": list(plan.notes),
    }


def estimate_mapping(plan: Plan) -> dict[str, Any]:
    """The estimate as plain data."""
    assert plan.estimate is not None
    estimate = plan.estimate
    return {
        "parameters": estimate.parameters,
        "trainable": estimate.trainable,
        "trained": {stage: [plain(part) for part in parts] for stage, parts in estimate.trained.items()},
        "memory_bytes": dict(estimate.memory),
        "peak_bytes": estimate.peak_bytes,
        "data": [plain(part) for part in estimate.data],
        "notes": list(estimate.notes),
    }


def _absolute(source: Source) -> Source:
    return replace(source, path=str(Path(source.path or "").resolve()))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
