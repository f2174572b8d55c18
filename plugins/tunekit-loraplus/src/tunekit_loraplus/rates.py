"""Which learning rate each part of a low-rank adapter is trained with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch

from tunekit.values import OptimizerSettings
from tunekit_train.adamw import decay_groups, has_fused

from . import LoraplusConfig

Part = Literal["first", "second", "embedding"]


def part_of(name: str) -> Part:
    """Which factor a parameter is, by PEFT's names; what belongs to no factor is trained as the first."""
    if "lora_embedding_" in name:
        return "embedding"
    return "second" if "lora_B." in name else "first"


def make_optimizer(
    config: LoraplusConfig, named: Iterable[tuple[str, Any]], settings: OptimizerSettings
) -> torch.optim.AdamW:
    """AdamW, fused where the device has such a kernel."""
    groups = list(_groups(config, list(named), settings))
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=config.eps, fused=has_fused(groups))


def _groups(
    config: LoraplusConfig, named: list[tuple[str, Any]], settings: OptimizerSettings
) -> Iterator[dict[str, Any]]:
    rates: dict[Part, float] = {
        "first": settings.learning_rate,
        "second": settings.learning_rate * config.ratio,
        "embedding": config.embedding_rate,
    }
    for part, rate in rates.items():
        chosen = [(name, parameter) for name, parameter in named if part_of(name) == part]
        yield from ({**group, "lr": rate} for group in decay_groups(chosen, settings.weight_decay))
