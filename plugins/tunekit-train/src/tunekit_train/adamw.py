"""AdamW over named parameters, with weight decay where it belongs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

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
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=has_fused(groups))


def has_fused(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether torch has one kernel for a step of these parameter groups."""
    return all(parameter.device.type in FUSED_DEVICES for group in groups for parameter in group["params"])


def adam_direction(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Adam's bias-corrected mean over root mean square, shaped as the gradient given; counts the step in `state`.

    For optimisers that keep moments of something else than the whole gradient.
    """
    if "step" not in state:
        state |= {"step": 0, "exp_avg": torch.zeros_like(gradient), "exp_avg_sq": torch.zeros_like(gradient)}
    state["step"] += 1
    beta1, beta2 = group["betas"]
    state["exp_avg"].lerp_(gradient, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    mean: Tensor = state["exp_avg"] / (1 - beta1 ** state["step"])
    square: Tensor = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
    return mean.div(square.sqrt().add(group["eps"]))
