"""What a run exports at its end, or once it is done: found, configured and checked like everything else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..calls import Calls, implements
from ..catalog import EXPORTS, Catalog, hooks_of
from ..errors import PlanError, Problem
from ..recipe import Use
from ..values import Estimate, EstimateRequest, ExportPlan, Plan
from .configuring import Configuration, find_plugin

EXPORT_HOOK = "tunekit_export"
ESTIMATE_HOOK = "tunekit_estimate"


def plan_exports(uses: Iterable[Use], found: Configuration, taken: Iterable[str] = ()) -> tuple[ExportPlan, ...]:
    """Configure the exports, each under a name of its own: its target's, with a number where that is taken."""
    uses = list(uses)
    targets = Catalog.discover(group=EXPORTS) if uses else Catalog([])
    names, exports = set(taken), []
    for use in uses:
        planned = find_plugin(use, targets, found, None)
        if planned is None:
            continue
        if EXPORT_HOOK not in hooks_of(type(planned.plugin)):
            found.problems.append(Problem(use.key, f"{use.name} exports nothing", f"there are {known_targets()}"))
        name = next(free for free in _numbered(planned.name) if free not in names)
        names.add(name)
        exports.append(ExportPlan(name, use.key, planned))
    return tuple(exports)


def export_problems(plan: Plan) -> Iterator[Problem]:
    """What cannot be exported of this run."""
    for export in plan.exports:
        for _, problems in Calls([export.plugin]).each("tunekit_check", plan=plan, machine=plan.machine):
            yield from problems


def estimate_exports(plan: Plan) -> tuple[str, ...]:
    """Show exports the shapes of the model as it is loaded, without an adapter; what they have noted.

    Raises PlanError with what is wrong about all of them.
    """
    loader = Calls(plan.plugins).for_run().owner("tunekit_load_model")
    asked = [export.plugin for export in plan.exports if implements(export.plugin.plugin, ESTIMATE_HOOK)]
    if loader is None or not implements(loader.plugin, ESTIMATE_HOOK) or not asked:
        return ()
    calls = Calls([loader, *asked])
    request = EstimateRequest(plan, plan.load_request, calls=calls)
    start: Estimate = calls.one(loader, ESTIMATE_HOOK, request=request, estimate=Estimate())
    problems: list[Problem] = []
    notes: list[str] = []
    for planned in asked if start.skeleton is not None else ():
        try:
            notes += calls.one(planned, ESTIMATE_HOOK, request=request, estimate=replace(start, notes=())).notes
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(problems)
    return tuple(notes)


def plan_one_export(plan: Plan, use: Use, taken: Iterable[str] = (), adapter: str | None = None) -> Plan:
    """The plan of a run with this export in place of its own. Raises PlanError with all that is wrong."""
    found = Configuration()
    exports = plan_exports([use], found, taken)
    plan = replace(plan, exports=tuple(replace(export, adapter=adapter) for export in exports))
    problems = found.problems or list(export_problems(plan))
    if problems:
        raise PlanError(problems) from found.cause
    estimate_exports(plan)
    return plan


def known_targets() -> str:
    """The names of the targets that are installed."""
    return ", ".join(Catalog.discover(group=EXPORTS).names) or "none; `pip install tunekit-export` brings some"


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1
