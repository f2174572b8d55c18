"""From the names and options of a recipe to configured plugins, defaults included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..calls import STAGE_SLOTS, implements
from ..catalog import Catalog, hooks_of
from ..defaults import DEFAULTS, distribution_of
from ..errors import BrokenPluginError, CatalogError, Problem, UnknownPluginError
from ..plugin import Plugin
from ..recipe import Recipe, Stage, Use, validate
from ..values import Mixing, PlannedPlugin, Purpose, StagePlan

STAGE_HOOK = "tunekit_train_stage"
STAGE_LEVEL = frozenset(
    {
        "tunekit_check",
        "tunekit_estimate",
        "tunekit_read_data",
        "tunekit_format_data",
        "tunekit_attach_adapter",
        "tunekit_optimizer",
        "tunekit_reward",
        "tunekit_event",
    }
)
"""The core's hooks that a plugin named inside a stage may answer; the others act on the whole run."""

_ALWAYS = ("tunekit_precision", "tunekit_load_tokenizer", "tunekit_load_model", "tunekit_infer_backend")
_TRAINING = ("tunekit_read_data", "tunekit_format_data", "tunekit_optimizer")
_WHERE_INSTALLED = ("tunekit_tool_format",)
"""Optional hooks whose default answers where it is installed."""


@dataclass
class Configuration:
    """What configuring a recipe gave: plugins, stages, and everything that was wrong."""

    plugins: list[PlannedPlugin] = field(default_factory=list)
    stages: list[StagePlan] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    cause: Exception | None = None

    @property
    def everyone(self) -> list[PlannedPlugin]:
        """All plugins: the run's, the stages' own, and the stages themselves."""
        inside = [planned for stage in self.stages for planned in (*stage.uses, stage.plugin)]
        return [*self.plugins, *inside]


def configure(recipe: Recipe, catalog: Catalog, purpose: Purpose) -> Configuration:
    """Load and configure every plugin the recipe names, then the defaults for what nobody answers."""
    found = Configuration()
    for use in recipe.use:
        planned = find_plugin(use, catalog, found, None)
        if planned is not None and STAGE_HOOK in hooks_of(type(planned.plugin)):
            found.problems.append(
                Problem(use.key, f"{use.name} is a stage", f"put it under stages: `- {use.name}: {{}}`")
            )
        elif planned is not None:
            found.plugins.append(planned)
    for index, stage in enumerate(recipe.stages):
        _add_stage(recipe, stage, index, catalog, found)
    if purpose == "train" and not recipe.stages:
        found.problems.append(Problem("stages", "names no stage", "say what to train: `stages: [{sft: {epochs: 1}}]`"))
    _add_formats(recipe, catalog, found)
    needed = _ALWAYS + (_TRAINING if recipe.stages else ())
    for hook in needed:
        _add_default(hook, catalog, found)
    for hook in _WHERE_INSTALLED if recipe.stages else ():
        if all(name in catalog for name in DEFAULTS[hook]):
            _add_default(hook, catalog, found)
    return found


def _add_stage(recipe: Recipe, stage: Stage, index: int, catalog: Catalog, found: Configuration) -> None:
    uses = [find_plugin(use, catalog, found, index) for use in stage.use]
    for use in uses:
        if use is not None:
            found.problems.extend(_not_for_a_stage(use))
    sources = recipe.data if stage.data is None else stage.data
    if not sources:
        found.problems.append(Problem(stage.key, "has no data", "name some: `data: alpaca.json`"))
    if not stage.name:
        return
    planned = find_plugin(Use(stage.name, stage.options, stage.key, stage.plugin), catalog, found, index)
    if planned is None:
        return
    if STAGE_HOOK not in hooks_of(type(planned.plugin)):
        found.problems.append(
            Problem(stage.key, f"{stage.name} is no stage", f"put it under use: `use: {{{stage.name}: {{}}}}`")
        )
    kept = tuple(use for use in uses if use is not None)
    mixing = recipe.mixing if stage.data is None else stage.mixing or Mixing()
    start = None if stage.adapter.start is None else Path(stage.adapter.start)
    found.stages.append(
        StagePlan(index, planned.name, stage.key, planned, sources, mixing, kept, stage.adapter.name, start)
    )


def find_plugin(use: Use, catalog: Catalog, found: Configuration, stage: int | None) -> PlannedPlugin | None:
    """Load and configure one named plugin; what goes wrong is a problem under its key."""
    if use.plugin is not None:
        entry = catalog.entry_of(type(use.plugin))
        distribution, version = (entry.distribution, entry.version) if entry else (type(use.plugin).__module__, "local")
        return PlannedPlugin(use.name, use.plugin, distribution, version, "named", use.key, stage)
    try:
        plugin = catalog.load(use.name)
        entry = catalog.entry(use.name)
    except CatalogError as error:
        found.problems.append(Problem(use.key, str(error)))
        if isinstance(error, BrokenPluginError):
            found.cause = error
        return None
    configured = _configured(plugin, use.options, use.key, found.problems)
    if configured is None:
        return None
    return PlannedPlugin(entry.name, configured, entry.distribution, entry.version, "named", use.key, stage)


def _configured(
    plugin: type[Plugin[Any]], options: Mapping[str, Any], key: str, problems: list[Problem]
) -> Plugin[Any] | None:
    config = validate(plugin.config_type(), options, key, problems)
    return None if config is None else plugin(config)


def _add_default(hook: str, catalog: Catalog, found: Configuration) -> None:
    """Add the default plugins of a hook, unless every stage already sees one that answers it."""
    everywhere = any(implements(planned.plugin, hook) for planned in found.plugins) or (
        hook in STAGE_SLOTS
        and bool(found.stages)
        and all(any(implements(use.plugin, hook) for use in stage.uses) for stage in found.stages)
    )
    if everywhere and hook != "tunekit_format_data":
        return
    for name in DEFAULTS[hook]:
        if name not in {planned.name for planned in found.plugins}:
            _add(name, hook, catalog, found)


def _add_formats(recipe: Recipe, catalog: Catalog, found: Configuration) -> None:
    """Add the formats that sources name and that are not defaults."""
    sources = [*recipe.data, *(source for stage in recipe.stages for source in stage.data or ())]
    known = {planned.name for planned in found.everyone} | set(DEFAULTS["tunekit_format_data"])
    for source in sources:
        if source.format is not None and source.format not in known:
            planned = find_plugin(Use(source.format, {}, f"{source.key}.format"), catalog, found, None)
            if planned is not None and not implements(planned.plugin, "tunekit_format_data"):
                found.problems.append(Problem(f"{source.key}.format", f"{source.format} is no format", "name another"))
            elif planned is not None:
                found.plugins.append(planned)
                known.add(source.format)


def _add(name: str, hook: str, catalog: Catalog, found: Configuration) -> None:
    try:
        plugin, entry = catalog.load(name), catalog.entry(name)
    except UnknownPluginError as error:
        remedy = f"pip install {distribution_of(name)}"
        reason = f"nothing answers {hook}: {str(error).partition(';')[0]}"
        if remedy not in {problem.remedy for problem in found.problems}:
            found.problems.append(Problem("use", reason, remedy))
        return
    except CatalogError as error:
        found.problems.append(Problem("use", str(error)))
        found.cause = error if isinstance(error, BrokenPluginError) else found.cause
        return
    configured = _configured(plugin, {}, name, found.problems)
    if configured is not None:
        found.plugins.append(PlannedPlugin(name, configured, entry.distribution, entry.version, "default", ""))


def _not_for_a_stage(planned: PlannedPlugin) -> Iterable[Problem]:
    hooks = [hook for hook in hooks_of(type(planned.plugin)) if hook not in STAGE_LEVEL and hook in _CORE]
    if hooks:
        yield Problem(
            planned.key,
            f"{planned.name} answers {', '.join(hooks)}, which acts on the whole run",
            f"name it in the recipe's own `use:`, not in stage {planned.stage}",
        )


_CORE = frozenset({*DEFAULTS, "tunekit_quantize", "tunekit_before_load", "tunekit_patch", "tunekit_launch"})
