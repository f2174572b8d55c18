"""AdamW over named parameters, with weight decay where it belongs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


def decay_groups(named: Iterable[tuple[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into decayed matrices and undecayed biases, norms and other vectors."""
    named = list(named)
    decayed = [parameter for _, parameter in named if parameter.ndim >= 2]
    kept = [parameter for _, parameter in named if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_adamw(
    named: Iterable[tuple[str, Any]], learning_rate: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW, fused where the device has such a kernel."""
    groups = decay_groups(named, weight_decay)
    fused = all(parameter.device.type in FUSED_DEVICES for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
