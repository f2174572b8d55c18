"""Certifying a recipe: what each stage is set to, and the process of its own in which it all happens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml

from ..errors import PlanError, Problem, RunFolderError, TunekitError
from ..plan import make_plan
from ..recipe import Recipe, Stage
from ..record import write_json, write_text
from ..values import Plan
from .certificate import Certificate

LOG = "log.txt"
JOB = "job.json"
RECIPE = "recipe.yaml"


def certify(recipe: Recipe, folder: str | Path, steps: int = 2) -> Certificate:
    """Train each stage for 2 `steps` + 1 steps twice, once killed after `steps` in every stage, and compare bit by bit.

    The kill is a real one (SIGKILL) of a process of its own. Both runs, what they printed and the report stay in
    `folder`. Raises PlanError where a stage has neither steps nor checkpoints, TunekitError where a run fails.
    """
    if steps < 1:
        raise PlanError([Problem("steps", f"is {steps}, so there is nothing to resume", "give 1 or more")])
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RunFolderError(f"{place} is there already", "choose another folder for the certificate")
    plan = make_plan(recipe)
    problems = list(_problems(plan))
    if problems:
        raise PlanError(problems)
    stages = tuple(_prepared(stage, steps) for stage in recipe.stages)
    prepared = replace(recipe, stages=stages, exports=(), output=None)
    make_plan(_by_name(prepared))
    write_text(place / RECIPE, yaml.safe_dump(prepared.to_mapping(), sort_keys=False))
    alone = bool(plan.machine.accelerators) or sys.platform != "linux"
    write_json(place / JOB, {"steps": steps, "stages": len(plan.stages), "fork": not alone})
    _work(place)
    return Certificate.load(place)


def _problems(plan: Plan) -> Iterator[Problem]:
    for stage in plan.stages:
        fields = stage.plugin.plugin.config_type().model_fields
        missing = [name for name in ("steps", "checkpoint") if name not in fields]
        if missing:
            message = f"{stage.plugin.name} has no option {' and none '.join(missing)}, so it cannot be certified"
            yield Problem(stage.key, message, "leave the stage out")


def _prepared(stage: Stage, steps: int) -> Stage:
    """The stage with a checkpoint to resume from, another one to compare, and a last step after it."""
    given = dict(stage.options.get("checkpoint") or {})
    checkpoint = {**given, "every": steps, "keep": max(2, given.get("keep", 2))}
    return replace(stage, options={**stage.options, "steps": 2 * steps + 1, "checkpoint": checkpoint}, plugin=None)


def _by_name(recipe: Recipe) -> Recipe:
    """The recipe as the other process reads it: plugins are named, none is an object."""
    return replace(recipe, use=tuple(replace(use, plugin=None) for use in recipe.use))


def _work(folder: Path) -> None:
    with (folder / LOG).open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "tunekit.certify.worker", str(folder)]
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        told = (folder / LOG).read_text(encoding="utf-8").strip().splitlines()
        raise TunekitError(
            f"the recipe could not be certified: {told[-1] if told else f'exit code {done.returncode}'}",
            f"all that was printed is in {folder / LOG}",
        )
