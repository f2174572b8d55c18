"""What speaks against a start, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.errors import PlanError, Problem
from tunekit.values import Plan
from tunekit_transformers import stored_quantization


def no_start(plugin: Any, name: str, plan: Plan) -> Iterator[Problem]:
    """Stages of this plugin that begin with a saved adapter."""
    stages = plan.stages_with(plugin)
    begun = {stage.adapter for stage in stages if stage.start is not None}
    fresh = next((f", or name {name} in {each.key}.use alone" for each in stages if each.adapter not in begun), "")
    for stage in stages:
        if stage.start is not None:
            message = f"{name} says where a fresh adapter starts, and this is a saved one"
            yield Problem(f"{stage.key}.adapter.start", message, f"leave {name} or start out{fresh}")


def nothing_lost(plan: Plan) -> Iterator[Problem]:
    """A model that is stored quantised: what that has lost cannot be known."""
    if stored_quantization(plan.load_request) is not None:
        message = (
            f"mends what quantisation has lost, and {plan.recipe.model} is stored quantised: it has none before it"
        )
        yield Problem("use.loftq", message, "name the model that is not quantised, and a quantiser that rounds it")


def even_ranks(config: Any) -> Any:
    """The configuration as it is. Raises PlanError where a rank is odd."""
    for option, ranks in (("rank", [config.r]), ("rank_pattern", config.rank_pattern.values())):
        for rank in ranks:
            if rank % 2:
                message = f"is {rank}, and orthogonal gives one half of the directions to A and the other to B"
                raise PlanError([Problem(f"use.lora.{option}", message, f"choose {rank + 1}, or another even rank")])
    return config


def room_for_two(model: Any) -> None:
    """Raise PlanError where A and B cannot take different directions of a gradient."""
    from tunekit_lora.residual import adapted_layers, adapter_of

    for name, layer in adapted_layers(model):
        rank, most = layer.r[adapter_of(model)], min(layer.in_features, layer.out_features)
        if 2 * rank > most:
            place = name.removeprefix("base_model.model.")
            sides = f"{place} is {layer.out_features} x {layer.in_features}"
            message = f"is {rank}, and loraga takes twice as many directions of each gradient: {sides}"
            raise PlanError([Problem("use.lora.rank", message, f"choose {most // 2} or less")])
