"""What cannot be trained with scaled positions, and what a plan says about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tunekit.errors import PlanError, Problem
from tunekit.values import Estimate, Plan

from . import RopeConfig
from .scaling import factor_in, reach_of, rope_of, scale_


def too_long(options: RopeConfig, plan: Plan) -> Iterator[Problem]:
    """Stages whose sequences may be longer than the length that is asked for."""
    for key, longest in _lengths(plan):
        if options.length is not None and longest > options.length:
            what = f"is {longest}, and use.rope.length {options.length}"
            yield Problem(f"{key}.batch.max_length", what, "lower the one or raise the other")


def estimate_scaling(options: RopeConfig, plan: Plan, estimate: Estimate) -> Estimate:
    """Scale the skeleton's config as the model's will be. PlanError for texts that dynamic scaling cannot train on."""
    assert estimate.skeleton is not None, "the loader's estimate comes before"
    config = estimate.skeleton.config
    before = reach_of(config)
    scale_(config, options)
    text = config.get_text_config(decoder=True)
    if options.scaling == "dynamic":
        _refuse_dynamic(plan, text.max_position_embeddings)
    factor = factor_in(text, rope_of(text))
    told = f"rotary positions: {options.scaling}, factor {factor:g}, {before} tokens become {reach_of(config)}"
    return replace(estimate, notes=(*estimate.notes, told))


def _refuse_dynamic(plan: Plan, original: int) -> None:
    """Frequencies follow the longest sequence of a batch, and of those before it: no loss would be its row's own."""
    found = [
        Problem(
            f"{key}.batch.max_length",
            f"is {longest}, and beyond {original} dynamic scaling gives a text other positions in other company, so "
            "that a loss would depend on its batch and a resumed run would not reach the numbers of a whole one",
            f"train up to {original}, or use yarn or llama3",
        )
        for key, longest in _lengths(plan)
        if longest > original
    ]
    if found:
        raise PlanError(found)


def _lengths(plan: Plan) -> Iterator[tuple[str, int]]:
    for stage in plan.stages:
        longest = getattr(getattr(stage.plugin.plugin.config, "batch", None), "max_length", None)
        if longest is not None:
            yield stage.key, int(longest)
