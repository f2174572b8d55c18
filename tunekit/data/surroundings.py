"""What data is prepared with: the tokenizer as the run patches it, a stage's context, and where tokens are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..calls import Calls
from ..values import Context, LoadRequest, Plan, Prepared, Report, StageContext, StagePlan
from .reading import open_examples


def load_tokenizer(context: Context, request: LoadRequest) -> tuple[Any, dict[str, Report]]:
    """Load the tokenizer and patch it, as every part of a run sees it."""
    calls = context.calls
    assert isinstance(calls, Calls)
    tokenizer = calls.own("tunekit_load_tokenizer", request=request, context=context)
    patches = calls.each("tunekit_patch_tokenizer", tokenizer=tokenizer, context=context)
    return tokenizer, {planned.name: report for planned, report in patches}


def preparing(plan: Plan, calls: Calls, stage: StagePlan | None) -> StageContext:
    """The context in which a stage prepares its data outside a run; without a stage, that of the run."""
    return StageContext(
        calls=calls.for_run() if stage is None else calls.for_stage(stage.index),
        machine=plan.machine,
        precision=plan.precision,
        folder=Path(),
        seed=plan.recipe.seed,
        emit=lambda event: None,
        name=stage.name if stage else "",
        key=stage.key if stage else "",
    )


def first_data(plan: Plan, calls: Calls, tokenizer: Any) -> Callable[[], Prepared] | None:
    """What prepares the data of the first stage when it is called; None where the plan has no stage."""
    if not plan.stages:
        return None
    return lambda: prepare(plan, calls, plan.stages[0], tokenizer)


def prepare(plan: Plan, calls: Calls, stage: StagePlan, tokenizer: Any) -> Prepared:
    """The data of a stage as it learns from it, outside a run."""
    examples = open_examples(calls.for_stage(stage.index), stage.sources, stage.mixing)
    context = preparing(plan, calls, stage)
    prepared: Prepared = calls.one(
        stage.plugin, "tunekit_prepare_data", data=examples, tokenizer=tokenizer, context=context
    )
    return prepared


def cache_folder(name: str) -> Path:
    """Where things are kept between runs: under `TUNEKIT_CACHE` where it is set, else the user's cache folder."""
    if chosen := os.environ.get("TUNEKIT_CACHE"):
        return Path(chosen).expanduser() / name
    import platformdirs

    return Path(platformdirs.user_cache_dir("tunekit")) / name
