"""Whether the blocks of a rotation fit the layers of a model: PEFT would take another size, and only warn."""

from __future__ import annotations

from typing import Any

from tunekit.errors import PlanError, Problem
from tunekit_lora import LoraConfig
from tunekit_lora.named import bare
from tunekit_lora.targets import choose_targets, linear_layers

from . import OftConfig


def refuse_uneven(model: Any, config: OftConfig) -> None:
    """Raise PlanError where a layer's inputs cannot be cut into whole blocks, or its targets are not there."""
    known = linear_layers(bare(model))
    chosen = [name for name in _chosen(bare(model), config) if name in known]
    uneven = [name for name in chosen if known[name][1] % config.block_size]
    if uneven:
        fits = [size for size in range(2, min(known[name][1] for name in chosen) + 1) if _divides(size, known, chosen)]
        nearest = sorted(fits, key=lambda size: abs(size - config.block_size))[:2]
        remedy = f"choose {' or '.join(map(str, sorted(nearest)))}" if nearest else "choose other targets"
        what = f"is {config.block_size}, and {uneven[0]} has {known[uneven[0]][1]} inputs, no multiple of it"
        raise PlanError([Problem("use.oft.block_size", what, remedy)])


def _divides(size: int, known: dict[str, tuple[int, int]], chosen: list[str]) -> bool:
    return all(known[name][1] % size == 0 for name in chosen)


def _chosen(model: Any, config: OftConfig) -> list[str]:
    try:
        return choose_targets(model, LoraConfig.model_validate({"targets": config.targets, "rank": 1}))
    except PlanError:
        return []  # said by the settings, with the key of this plugin
