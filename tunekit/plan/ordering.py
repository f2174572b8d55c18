"""What fits together, and in which order: capabilities, slots and phases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..calls import claimants_of, rank_claimant
from ..catalog import Catalog, hooks_of
from ..errors import Problem, TunekitError
from ..values import DEFAULT_ADAPTER, PlannedPlugin, PlanStep, StagePlan

PHASES: tuple[tuple[str, str], ...] = (
    ("precision", "tunekit_precision"),
    ("launch", "tunekit_launch"),
    ("tokenizer", "tunekit_load_tokenizer"),
    ("tokenizer", "tunekit_patch_tokenizer"),
    ("data", "tunekit_read_data"),
    ("data", "tunekit_format_data"),
    ("data", "tunekit_tool_format"),
    ("load", "tunekit_load_model"),
    ("load", "tunekit_quantize"),
    ("load", "tunekit_before_load"),
    ("patch", "tunekit_patch"),
    ("adapt", "tunekit_attach_adapter"),
    ("train", "tunekit_optimizer"),
    ("train", "tunekit_train_stage"),
    ("use", "tunekit_infer_backend"),
)
"""The hooks that place a plugin in a plan, and the phase each belongs to. An estimate is made in this order."""

SLOTS = (
    "tunekit_precision",
    "tunekit_launch",
    "tunekit_load_tokenizer",
    "tunekit_read_data",
    "tunekit_tool_format",
    "tunekit_quantize",
    "tunekit_load_model",
    "tunekit_attach_adapter",
    "tunekit_optimizer",
    "tunekit_infer_backend",
)
"""Own hooks that one plugin answers for a whole run or stage."""

REWARDED = "stage.rewarded"
"""What a stage provides that learns from its own answers, and asks `tunekit_reward` what they are worth."""

_RANK = {hook: rank for rank, (_, hook) in enumerate(PHASES)}
_PHASE = {hook: phase for phase, hook in PHASES}
_HELPERS = _RANK["tunekit_attach_adapter"] + 0.5


def views(plugins: Sequence[PlannedPlugin], stages: Sequence[StagePlan]) -> list[tuple[PlannedPlugin, ...]]:
    """The plugins as each stage sees them: the run's, its own, and itself; the run's alone where there is no stage."""
    shared = tuple(plugins)
    return [(*shared, *stage.uses, stage.plugin) for stage in stages] or [shared]


def incompatibilities(plugins: Sequence[PlannedPlugin], stages: Sequence[StagePlan], catalog: Catalog) -> list[Problem]:
    """All reasons why these plugins cannot work together, each once."""
    found: dict[Problem, None] = dict.fromkeys(_never_asked(plugins, stages))
    for view in views(plugins, stages):
        for problem in (*_slot_clashes(view), *_unmet(view, catalog), *_conflicts(view)):
            found[problem] = None
    return list(found)


def order(plugins: Iterable[PlannedPlugin]) -> tuple[list[PlannedPlugin], list[Problem]]:
    """Sort by phase; inside a phase by `requires` and `after`, then as written. A circle is a problem."""
    waiting = sorted(plugins, key=lambda planned: _rank(planned))
    placed: list[PlannedPlugin] = []
    while waiting:
        ready = next((planned for planned in waiting if not _held_back(planned, waiting)), None)
        if ready is None:
            names = ", ".join(planned.name for planned in waiting)
            return placed + waiting, [
                Problem("use", f"{names} each want to come after another", "take one of them out")
            ]
        waiting.remove(ready)
        placed.append(ready)
    return placed, []


def steps(plugins: Sequence[PlannedPlugin], stages: Sequence[StagePlan]) -> Iterator[PlanStep]:
    """The hook calls of a run in the order they will be made."""
    run = [planned for planned in plugins if planned.stage is None]
    for phase, hook in PHASES[:4]:
        yield from _steps(phase, hook, run)
    for stage in stages:
        view = [planned for planned in plugins if planned.stage in (None, stage.index)]
        yield from _steps(f"data {stage.name}", "tunekit_read_data", view)
        yield from _formats(f"data {stage.name}", stage, view)
        yield from _steps(f"data {stage.name}", "tunekit_tool_format", run)
        yield PlanStep(f"data {stage.name}", "tunekit_prepare_data", stage.plugin.name, "named")
    for hook in ("tunekit_quantize", "tunekit_before_load", "tunekit_load_model", "tunekit_patch"):
        yield from _steps(_PHASE[hook], hook, run)
    if not stages:
        yield from _adapting("adapt", run)
    adapted: set[str] = set()
    for stage in stages:
        view = [planned for planned in plugins if planned.stage in (None, stage.index)]
        if stage.adapter not in adapted:
            yield from _adapting("adapt" if stage.adapter == DEFAULT_ADAPTER else f"adapt {stage.adapter}", view)
            adapted.add(stage.adapter)
        yield from _steps(f"train {stage.name}", "tunekit_optimizer", view)
        yield from _published(f"train {stage.name}", [stage.plugin], view)
        yield PlanStep(f"train {stage.name}", "tunekit_train_stage", stage.plugin.name, "named")
        if REWARDED in stage.plugin.plugin.provides:
            yield from _steps(f"train {stage.name}", "tunekit_reward", view)
    yield from _steps("use", "tunekit_infer_backend", run)


def _steps(phase: str, hook: str, view: Sequence[PlannedPlugin]) -> Iterator[PlanStep]:
    claimants = claimants_of(view, hook)
    if hook in SLOTS:
        claimants = claimants[:1]
    for planned in claimants:
        yield PlanStep(phase, hook, planned.name, planned.why)


def _formats(phase: str, stage: StagePlan, view: Sequence[PlannedPlugin]) -> Iterator[PlanStep]:
    """The formats a stage's sources name, and in one step those that recognise the others."""
    named = dict.fromkeys(source.format for source in stage.sources if source.format is not None)
    yield from (PlanStep(phase, "tunekit_format_data", name, "named") for name in named)
    if any(source.format is None for source in stage.sources):
        known = ", ".join(planned.name for planned in claimants_of(view, "tunekit_format_data"))
        yield PlanStep(phase, "tunekit_format_data", known, "whichever knows the columns")


def _adapting(phase: str, view: Sequence[PlannedPlugin]) -> Iterator[PlanStep]:
    """One adapter is attached, and meanwhile the hooks are called that plugins publish."""
    yield from _steps(phase, "tunekit_attach_adapter", view)
    yield from _published(phase, [planned for planned in view if not _answers(planned, "tunekit_train_stage")], view)


def _published(phase: str, publishers: Sequence[PlannedPlugin], view: Sequence[PlannedPlugin]) -> Iterator[PlanStep]:
    """Hooks that plugins publish: an adapter's are called while it is attached, a stage's while it trains."""
    classes = (specs for planned in publishers for specs in planned.plugin.hookspecs)
    published = dict.fromkeys(hook for specs in classes for hook in vars(specs))
    for hook in published:
        if not hook.startswith("_"):
            yield from (PlanStep(phase, hook, planned.name, planned.why) for planned in view if _answers(planned, hook))


def _answers(planned: PlannedPlugin, hook: str) -> bool:
    return hook in hooks_of(type(planned.plugin))


def _rank(planned: PlannedPlugin) -> float:
    ranks = [_RANK[hook] for hook in hooks_of(type(planned.plugin)) if hook in _RANK]
    return min(ranks, default=_HELPERS)


def _held_back(planned: PlannedPlugin, waiting: Sequence[PlannedPlugin]) -> bool:
    wanted = planned.plugin.requires | planned.plugin.after
    rank = _rank(planned)
    others = (other for other in waiting if other is not planned and _rank(other) <= rank)
    return any(wanted & other.plugin.provides for other in others)


def _slot_clashes(view: Sequence[PlannedPlugin]) -> Iterator[Problem]:
    for hook in SLOTS:
        claimants = claimants_of(view, hook)
        best = [other for other in claimants if rank_claimant(other, hook) == rank_claimant(claimants[0], hook)]
        if len(best) > 1:
            names = " and ".join(f"{other.name} ({other.distribution} {other.version})" for other in best)
            yield Problem(best[-1].key, f"{names} both answer {hook}, and only one can", "name one of them")


def _never_asked(plugins: Sequence[PlannedPlugin], stages: Sequence[StagePlan]) -> Iterator[Problem]:
    """Rewards that no stage would ask for."""
    asking = [stage for stage in stages if REWARDED in stage.plugin.plugin.provides]
    shared = [] if asking or not stages else list(plugins)
    for planned in (*shared, *(use for stage in stages if stage not in asking for use in stage.uses)):
        if _answers(planned, "tunekit_reward"):
            what = f"{planned.name} values answers, and no stage that it belongs to learns from its own answers"
            yield Problem(planned.key, what, "take it out, or add a stage such as `ppo`")


def _unmet(view: Sequence[PlannedPlugin], catalog: Catalog) -> Iterator[Problem]:
    provided = frozenset().union(*(planned.plugin.provides for planned in view))
    for planned in view:
        for capability in sorted(planned.plugin.requires - provided):
            yield Problem(planned.key, f"{planned.name} needs {capability!r}, which nothing here provides",
                          _provider_hint(capability, catalog))  # fmt: skip


def _provider_hint(capability: str, catalog: Catalog) -> str:
    """Who could provide it: asked of the installed plugins, which only this error ever imports."""
    offers: list[str] = []
    for name in catalog.names:
        try:
            provides = catalog.load(name).provides
        except TunekitError:
            continue
        if isinstance(provides, frozenset) and capability in provides:
            offers.append(name)
    if offers:
        return f"add {' or '.join(f'`{name}: {{}}`' for name in offers)} to use"
    return f"no installed plugin provides it; perhaps `pip install tunekit-{capability.rpartition('.')[2]}`"


def _conflicts(view: Sequence[PlannedPlugin]) -> Iterator[Problem]:
    for planned in view:
        for other in view:
            for capability in sorted(planned.plugin.conflicts & other.plugin.provides) if other is not planned else ():
                yield Problem(
                    planned.key or other.key,
                    f"{planned.name} ({planned.distribution} {planned.version}) does not work with {other.name} "
                    f"({other.distribution} {other.version}), which provides {capability!r}",
                    "take one of them out",
                )
