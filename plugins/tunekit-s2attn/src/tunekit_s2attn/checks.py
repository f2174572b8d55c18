"""Stages that shifted sparse attention could not act in, or would make wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.errors import PlanError, Problem
from tunekit.values import Plan
from tunekit_train import Stage


def problems(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """A group that covers every sequence, and stages that another library trains."""
    key = next(planned.key for planned in plan.plugins if planned.plugin is plugin)
    group, longest = plugin.config.group, 0
    for stage in plan.stages:
        if not isinstance(stage.plugin.plugin, Stage):
            what = f"works with the engine of tunekit-train, and {stage.name} is trained by another library"
            yield Problem(key, what, "leave it out, or train another stage")
            continue
        longest = max(longest, _longest(stage.plugin.plugin.config))
    if plan.stages and longest and longest <= group:
        what = f"is {group}, and no sequence has more than {longest} tokens, so that all attention would be whole"
        remedy = f"set it to {max(2, longest // 8 * 2)}, or train on longer sequences (batch.max_length)"
        yield Problem(f"{key}.group", what, remedy)


def _longest(config: Any) -> int:
    """The most tokens of one sequence of a stage: of a block, where documents are cut into blocks."""
    return int(getattr(config, "block_size", None) or config.batch.max_length)


def refuse_unsuited(plugin: Any, plan: Plan, skeleton: Any) -> None:
    """Raise PlanError for a model whose attention cannot be replaced."""
    from tunekit_train.forward import base_model

    from .attention import unsuited

    if (obstacle := unsuited(base_model(skeleton))) is not None:
        key = next(planned.key for planned in plan.plugins if planned.plugin is plugin)
        raise PlanError([Problem(key, obstacle, "leave s2attn out")])


def refuse_comparing(plugin: Any, plan: Plan) -> None:
    """Raise PlanError for stages with a reference, which is scored in evaluation and so with whole attention."""
    from tunekit_train import ReferenceLogProbs

    key = next(planned.key for planned in plan.plugins if planned.plugin is plugin)
    found = [
        Problem(key, f"trains with another attention than {stage.name} scores its reference with", "leave it out")
        for stage in plan.stages
        if isinstance(stage.plugin.plugin, Stage)
        and any(isinstance(need, ReferenceLogProbs) for need in stage.plugin.plugin.objective().needs)
    ]
    if found:
        raise PlanError(found)
