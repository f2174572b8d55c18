"""How hooks are called: one hook on one plugin at a time, timed, its result checked, its failure attributed."""

from __future__ import annotations

import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

from .defaults import DEFAULTS
from .errors import HookCallError, PlanError, Problem, TunekitError, nearest
from .hooks import HookSpecs
from .imports import freeing_failed_imports
from .values import PlannedPlugin

STAGE_SLOTS = ("tunekit_optimizer", "tunekit_read_data", "tunekit_attach_adapter")
"""Own hooks that a stage may give to a plugin of its own."""


class _Manager(pluggy.PluginManager):
    """Looks for hooks among those that a plugin's class marks, and at no other attribute: there are hundreds."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """The options of a hook; None for anything else."""
        return super().parse_hookimpl_opts(plugin, name) if implements(plugin, name) else None


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One finished hook call; `error` is empty where it went well."""

    hook: str
    plugin: str
    distribution: str
    version: str
    seconds: float
    error: str = ""


class Calls:
    """The hook calls of one run, over a PluginManager of its own that holds the planned plugins and nothing else.

    Plugins of one stage are seen by that stage only, through `for_stage`, and answer before those of the whole run.
    """

    def __init__(self, plugins: Sequence[PlannedPlugin], observe: Callable[[CallRecord], None] | None = None) -> None:
        self._plugins = tuple(plugins)
        self._all = self._plugins
        self._observe = observe
        self._manager = _Manager("tunekit")
        self._manager.add_hookspecs(HookSpecs)
        for specs in dict.fromkeys(specs for planned in plugins for specs in planned.plugin.hookspecs):
            self._manager.add_hookspecs(specs)
        for planned in plugins:
            self._register(planned)

    def for_stage(self, stage: int) -> Calls:
        """The same calls as this stage sees them: its own optimiser and reader hide the run's."""
        view = object.__new__(Calls)
        view.__dict__.update(self.__dict__)
        own = [planned for planned in self._all if planned.stage == stage]
        hidden = {hook for hook in STAGE_SLOTS for planned in own if implements(planned.plugin, hook)}
        shared = [
            planned
            for planned in self._all
            if planned.stage is None and not any(implements(planned.plugin, hook) for hook in hidden)
        ]
        view._plugins = tuple(planned for planned in self._all if planned in shared or planned in own)
        return view

    def for_run(self) -> Calls:
        """The same calls without the plugins that belong to single stages."""
        return self.for_stage(-1)

    @property
    def plugins(self) -> tuple[PlannedPlugin, ...]:
        """The planned plugins that are seen here, in plan order."""
        return self._plugins

    def answering(self, hook: str) -> tuple[PlannedPlugin, ...]:
        """The planned plugins that implement `hook`, in plan order."""
        return tuple(planned for planned in self._plugins if implements(planned.plugin, hook))

    def owner(self, hook: str) -> PlannedPlugin | None:
        """The one plugin that answers an own hook: a stage's before the run's, any other before the default."""
        return next(iter(claimants_of(self._plugins, hook)), None)

    def one(self, planned: PlannedPlugin, hook: str, **arguments: Any) -> Any:
        """Call `hook` on one plugin. Our own errors pass through; any other becomes a HookCallError."""
        others = [other.plugin for other in self._all if other is not planned]
        caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
        start = time.perf_counter()
        error = ""
        try:
            with freeing_failed_imports():
                results = caller(**arguments)
            return check_result(self._spec(hook), results[0] if results else None, planned)
        except TunekitError as cause:
            error = str(cause)
            raise
        except Exception as cause:
            error = f"{type(cause).__name__}: {cause}"
            raise HookCallError(planned.name, planned.distribution, planned.version, hook, cause) from cause
        finally:
            self._record(planned, hook, time.perf_counter() - start, error)

    def own(self, hook: str, **arguments: Any) -> Any:
        """Call the plugin that owns `hook`. PlanError where no planned plugin answers it."""
        owner = self.owner(hook)
        if owner is None:
            raise PlanError([Problem("use", f"no plugin answers {hook}", "name one that does")])
        return self.one(owner, hook, **arguments)

    def chain(self, hook: str, argument: str, value: Any, **arguments: Any) -> Any:
        """Fold `value`, passed as `argument`, through all plugins that answer `hook`, in plan order."""
        for planned in self.answering(hook):
            value = self.one(planned, hook, **{argument: value}, **arguments)
        return value

    def each(self, hook: str, **arguments: Any) -> Iterator[tuple[PlannedPlugin, Any]]:
        """Call every plugin that answers `hook` with the same arguments, and give each result with its plugin."""
        for planned in self.answering(hook):
            yield planned, self.one(planned, hook, **arguments)

    def watch(self, hook: str, warn: Callable[[str], None], **arguments: Any) -> None:
        """Tell every observer; one that fails is reported through `warn` and the others still hear."""
        for planned in self.answering(hook):
            try:
                self.one(planned, hook, **arguments)
            except Exception as error:
                warn(str(error))

    def _register(self, planned: PlannedPlugin) -> None:
        for name in dir(type(planned.plugin)):
            options = getattr(getattr(type(planned.plugin), name, None), "tunekit_impl", None)
            if options and (options["wrapper"] or options["hookwrapper"]):
                remedy = "implement the hook without wrapper=True"
                message = f"{planned.name} wraps {name}, and a wrapper changes other plugins' calls unseen"
                raise PlanError([Problem(planned.key, message, remedy)])
            published = hasattr(getattr(self._manager.hook, name, None), "spec")
            if options and not published and not options["optionalhook"]:
                close = nearest(name, (known for known in vars(self._manager.hook) if known.startswith("tunekit")))
                remedy = f"did you mean {close}?" if close else "the plugin that publishes it is not part of this run"
                raise PlanError(
                    [Problem(planned.key, f"{planned.name} implements {name}, which is no hook here", remedy)]
                )
        scope = "" if planned.stage is None else f"@{planned.stage}"
        try:
            self._manager.register(planned.plugin, name=planned.name + scope)
        except pluggy.PluginValidationError as error:
            raise PlanError(
                [Problem(planned.key, str(error), f"mend {planned.distribution} {planned.version}")]
            ) from error

    def _spec(self, hook: str) -> Any:
        spec = getattr(self._manager.hook, hook).spec
        return spec.function if spec is not None else None

    def _record(self, planned: PlannedPlugin, hook: str, seconds: float, error: str) -> None:
        if self._observe is not None and hook != "tunekit_event":
            self._observe(CallRecord(hook, planned.name, planned.distribution, planned.version, seconds, error))


def implements(plugin: Any, hook: str) -> bool:
    """Whether a plugin object implements this hook."""
    return hasattr(getattr(type(plugin), hook, None), "tunekit_impl")


def claimants_of(plugins: Sequence[PlannedPlugin], hook: str) -> list[PlannedPlugin]:
    """Who implements `hook`, the one who answers it as an own hook first."""
    return sorted((planned for planned in plugins if implements(planned.plugin, hook)),
                  key=lambda planned: rank_claimant(planned, hook))  # fmt: skip


def rank_claimant(planned: PlannedPlugin, hook: str) -> tuple[bool, bool]:
    """Rank a claimant of an own hook: a stage's plugin before the run's, and the usual one gives way to any other."""
    return planned.stage is None, planned.name in DEFAULTS.get(hook, ())


def check_result(spec: Any, result: Any, planned: PlannedPlugin) -> Any:
    """Check a result against the return type of its spec; TypeError naming both where it does not fit."""
    expected = _return_type(spec)
    if expected is not None and not isinstance(result, expected):
        wanted = " or ".join(kind.__name__ for kind in expected)
        raise TypeError(f"{spec.__name__} of {planned.name} returned {type(result).__name__}, not {wanted}")
    return result


def _return_type(spec: Any) -> tuple[type, ...] | None:
    if spec is None or spec.__annotations__.get("return") in (None, "None", "Any"):
        return None
    hint = typing.get_type_hints(spec).get("return")
    members = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kinds = tuple(kind for member in members if isinstance(kind := typing.get_origin(member) or member, type))
    return kinds or None
