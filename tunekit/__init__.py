"""tunekit: fine-tuning from plugins. Plan, then run.

Names are imported when first used, so that `import tunekit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog import Catalog
    from .errors import (
        DataError,
        DivergedError,
        InterruptedRunError,
        PlanError,
        Problem,
        RecipeError,
        TunekitError,
    )
    from .hooks import hookimpl, hookspec
    from .pipeline import Pipeline, open_model, open_run, resume_run
    from .plugin import Plugin, PluginConfig
    from .recipe import Recipe
    from .run import Run
    from .session import Session
    from .values import Event, Message, Plan

__all__ = [
    "Catalog",
    "DataError",
    "DivergedError",
    "Event",
    "InterruptedRunError",
    "Message",
    "Pipeline",
    "Plan",
    "PlanError",
    "Plugin",
    "PluginConfig",
    "Problem",
    "Recipe",
    "RecipeError",
    "Run",
    "Session",
    "TunekitError",
    "hookimpl",
    "hookspec",
    "open_model",
    "open_run",
    "resume_run",
]

_HOME = {
    "Catalog": "catalog",
    **dict.fromkeys(
        ("DataError", "DivergedError", "InterruptedRunError", "PlanError", "Problem", "RecipeError", "TunekitError"),
        "errors",
    ),
    **dict.fromkeys(("hookimpl", "hookspec"), "hooks"),
    **dict.fromkeys(("Pipeline", "open_model", "open_run", "resume_run"), "pipeline"),
    **dict.fromkeys(("Plugin", "PluginConfig"), "plugin"),
    "Recipe": "recipe",
    "Run": "run",
    "Session": "session",
    **dict.fromkeys(("Event", "Message", "Plan"), "values"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tunekit' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
