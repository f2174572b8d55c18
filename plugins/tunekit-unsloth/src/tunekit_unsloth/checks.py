"""What unsloth cannot do, found before a process is started: no torch, only metadata."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Any

from tunekit.errors import PlanError, Problem
from tunekit.values import Plan
from tunekit_train import Stage

NEEDED = ("unsloth", "unsloth-zoo")
INSTALL = "`pip install --no-deps unsloth unsloth_zoo`"
"""Without its dependencies: it pins older versions of libraries than it works with."""
TRAINED_WITHOUT = ("allow_pickle", "attention", "device_map", "max_memory")
"""Options of transformers' loader that unsloth does not take; they act where a model is only asked."""


def problems(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """What stands against a run through unsloth."""
    key = next(planned.key for planned in plan.plugins if planned.plugin is plugin)
    missing = [name for name in NEEDED if not is_installed(name)]
    if missing and plan.purpose != "open":  # a run that has been trained is asked without it
        yield Problem(key, f"needs {' and '.join(missing)}, not installed here", f"{INSTALL}, or leave unsloth out")
    if plan.provides("positions.scaled"):
        what = "reads the config of the checkpoint, so that positions would be scaled in the plan and not in the run"
        yield Problem(key, what, "leave out unsloth or rope")
    if plan.provides("attention.chosen"):
        yield Problem(key, "chooses the attention by itself", "leave out unsloth or attention")
    if plan.stages:
        for option in TRAINED_WITHOUT:
            if option in plugin.config.model_fields_set:
                yield Problem(f"{key}.{option}", "is nothing that unsloth takes where it trains", "leave it out")
    for stage in plan.stages:
        config = stage.plugin.plugin.config
        if not isinstance(stage.plugin.plugin, Stage):
            yield Problem(key, f"does not load models for {stage.name}, which another library trains", "leave it out")
        elif config.batch.max_length > plugin.config.max_length:
            what = f"is {plugin.config.max_length}, and {stage.key}.batch.max_length is {config.batch.max_length}"
            yield Problem(f"{key}.max_length", what, f"set it to {config.batch.max_length}")


def refuse_scaling(max_length: int, config: Any) -> None:
    """Raise PlanError for more tokens than a model reads.

    Unsloth would scale its positions for them, linearly, and whoever opens the run without it would not.
    """
    reach = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if reach is not None and max_length > reach:
        what = f"is {max_length}, and the model reads {reach}: beyond that unsloth scales its positions"
        raise PlanError([Problem("use.unsloth.max_length", what, f"set it to {reach} or less")])


def is_installed(distribution: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
