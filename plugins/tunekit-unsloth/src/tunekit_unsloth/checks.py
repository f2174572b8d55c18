"""What unsloth cannot do, found before a process is started: no torch, only metadata."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Any

from tunekit.errors import Problem
from tunekit.values import Plan
from tunekit_train import Stage

NEEDED = ("unsloth", "unsloth-zoo")
INSTALL = "`pip install --no-deps unsloth unsloth_zoo`"
"""Without its dependencies: it pins older versions of libraries than it works with."""


def problems(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """What stands against a run through unsloth."""
    key = next(planned.key for planned in plan.plugins if planned.plugin is plugin)
    missing = [name for name in NEEDED if not is_installed(name)]
    if missing:
        yield Problem(key, f"needs {' and '.join(missing)}, not installed here", f"{INSTALL}, or leave unsloth out")
    other = plan.plugin("transformers")
    for option in sorted({"revision", "trust_remote_code", "allow_pickle", "attention"} & _given(other)):
        what = f"is set, and the model is loaded by {key}"
        yield Problem(f"{other.key}.{option}" if other else key, what, "leave it out")
    for stage in plan.stages:
        config = stage.plugin.plugin.config
        if not isinstance(stage.plugin.plugin, Stage):
            yield Problem(key, f"does not load models for {stage.name}, which another library trains", "leave it out")
        elif config.batch.max_length > plugin.config.max_length:
            what = f"is {plugin.config.max_length}, and {stage.key}.batch.max_length is {config.batch.max_length}"
            yield Problem(f"{key}.max_length", what, f"set it to {config.batch.max_length}")


def _given(planned: Any) -> set[str]:
    """The options that the recipe gives a plugin."""
    return set() if planned is None else set(planned.plugin.config.model_fields_set)


def is_installed(distribution: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
