"""Recipe, installed plugins and machine in; a plan, or every problem at once, out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import metadata
from typing import Any

from ..calls import Calls, implements
from ..catalog import Catalog
from ..data import count_rows, load_tokenizer, open_examples, preparing
from ..errors import PlanError, Problem, ProblemsError
from ..machine import probe
from ..recipe import Recipe
from ..values import (
    Estimate,
    EstimateRequest,
    ExportPlan,
    Machine,
    Plan,
    PlannedPlugin,
    PlanStep,
    Precision,
    Prepared,
    Purpose,
    StagePlan,
    trained_parts,
)
from .adapters import adapter_problems
from .configuring import Configuration, configure
from .exports import EXPORT_HOOK, estimate_exports, export_problems, plan_exports
from .ordering import SLOTS, incompatibilities, order, steps

OPENING = (
    "tunekit_precision",
    "tunekit_load_tokenizer",
    "tunekit_patch_tokenizer",
    "tunekit_quantize",
    "tunekit_before_load",
    "tunekit_load_model",
    "tunekit_patch",
    "tunekit_attach_adapter",
    "tunekit_infer_backend",
)
"""The hooks that are called when a run is opened."""
SAMPLE_ROWS = 512
COUNTED_ROWS = 200_000
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "bitsandbytes")


def make_plan(
    recipe: Recipe, catalog: Catalog | None = None, machine: Machine | None = None, purpose: Purpose = "train"
) -> Plan:
    """Work out what a run will do. Pure but for reading metadata: no torch, no network, no weights.

    Raises PlanError with every problem found, each under its key path.
    """
    catalog = catalog or Catalog.discover()
    machine = machine or probe()
    found = configure(recipe, catalog, purpose)
    if not found.problems:
        found.problems.extend(incompatibilities(found.plugins, found.stages, catalog))
    ordered, circles = order(found.everyone)
    found.problems.extend(circles)
    exports = plan_exports(recipe.exports, found)
    _stop(found)
    calls = Calls(ordered)
    precision = _precision(calls, machine, found)
    plan = Plan(
        recipe=recipe,
        machine=machine,
        precision=precision,
        plugins=tuple(ordered),
        steps=(*steps(ordered, found.stages), *_export_steps(exports)),
        stages=tuple(found.stages),
        owners={hook: owner.name for hook in SLOTS if (owner := calls.owner(hook)) is not None},
        versions=_versions([*ordered, *(export.plugin for export in exports)]),
        exports=exports,
        purpose=purpose,
    )
    found.problems.extend(_problems_of_opening(plan) if purpose == "open" else _problems(plan, calls))
    _stop(found)
    return plan


def _problems(plan: Plan, calls: Calls) -> Iterator[Problem]:
    yield from adapter_problems(plan, calls)
    for _, problems in calls.each("tunekit_check", plan=plan, machine=plan.machine):
        yield from problems
    yield from export_problems(plan)


def _problems_of_opening(plan: Plan) -> Iterator[Problem]:
    """What stands against the model of a run that has been trained: what only training needs is not asked any more.

    So a run opens on another machine, and beside data and adapters that have changed since.
    """
    opening = [planned for planned in plan.plugins if any(implements(planned.plugin, hook) for hook in OPENING)]
    trained = replace(plan, stages=(), exports=())
    for _, problems in Calls(opening).each("tunekit_check", plan=trained, machine=plan.machine):
        yield from problems


def _export_steps(exports: tuple[ExportPlan, ...]) -> list[PlanStep]:
    return [PlanStep("export", EXPORT_HOOK, export.plugin.name, "named") for export in exports]


def add_estimate(plan: Plan) -> Plan:
    """Add parameter counts, the look of the data and the expected memory. Imports torch; never loads weights.

    Raises DataError for what is wrong in the sampled rows.
    """
    calls = Calls(plan.plugins)
    views = [calls.for_stage(stage.index) for stage in plan.stages] or [calls.for_run()]
    estimates = [_stage_estimate(plan, view, stage) for view, stage in zip(views, plan.stages or (None,), strict=True)]
    largest = max(estimates, key=lambda estimate: estimate.peak_bytes)
    data = tuple(part for estimate in estimates for part in estimate.data)
    noted = [note for estimate in estimates for note in estimate.notes]
    notes = tuple(dict.fromkeys((*noted, *estimate_exports(plan))))
    trained = {name: part for estimate in estimates for name, part in estimate.trained.items()}
    kept = replace(largest, data=data, notes=notes, trained=trained, skeleton=None, tokenizer=None)
    return replace(plan, estimate=kept)


def _stage_estimate(plan: Plan, calls: Calls, stage: StagePlan | None) -> Estimate:
    request = EstimateRequest(plan, plan.load_request, calls=calls, stage=stage)
    tokenizer, _ = load_tokenizer(preparing(plan, calls, stage), request.load)
    if stage is not None:
        counted = None if stage.mixing.streaming else count_rows(calls, stage.sources, COUNTED_ROWS)
        rows = {} if counted is None else {stage.index: counted}
        request = replace(request, samples={stage.index: _sample(plan, calls, stage, tokenizer)}, rows=rows)
    start = Estimate(tokenizer=tokenizer)
    estimate: Estimate = calls.chain("tunekit_estimate", "estimate", start, request=request)
    if stage is None or estimate.skeleton is None:
        return estimate
    parts = trained_parts(estimate.skeleton, plan.precision.trainable)
    return replace(estimate, trained={plan.title(stage.index): parts})


def _sample(plan: Plan, calls: Calls, stage: StagePlan, tokenizer: Any) -> Prepared:
    """Prepare the first rows of each source; DataError for what is wrong with them."""
    examples = open_examples(calls, stage.sources, stage.mixing, SAMPLE_ROWS)
    context = preparing(plan, calls, stage)
    prepared: Prepared = calls.one(
        stage.plugin, "tunekit_prepare_data", data=examples, tokenizer=tokenizer, context=context
    )
    prepared.account.stop_on_problems()
    return prepared


def _precision(calls: Calls, machine: Machine, found: Configuration) -> Precision:
    try:
        precision: Precision = calls.for_run().own("tunekit_precision", machine=machine)
        return precision
    except ProblemsError as error:
        found.problems.extend(error.problems)
        _stop(found)
        raise AssertionError("problems stop the plan") from error


def _stop(found: Configuration) -> None:
    if found.problems:
        unique: list[Problem] = list(dict.fromkeys(found.problems))
        raise PlanError(unique) from found.cause


def _versions(plugins: list[PlannedPlugin]) -> dict[str, str]:
    libraries = {name: version for name in ("tunekit-core", *LIBRARIES) if (version := _version(name)) is not None}
    return {**{planned.distribution: planned.version for planned in plugins}, **libraries}


@cache
def _version(name: str) -> str | None:
    """What is installed under this name; asked once, since reading it takes as long as the rest of a plan."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
