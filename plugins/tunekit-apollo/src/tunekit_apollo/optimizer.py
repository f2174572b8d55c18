"""AdamW that learns step sizes, not directions, for some of its parameters, from random sketches of their gradients."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tunekit_train.adamw import adam_direction
from tunekit_train.each_parameter import EachParameter


class ApolloAdamW(EachParameter):
    """AdamW with approximated gradient scaling (APOLLO, arXiv 2412.05270).

    In a parameter group with `rank` > 0, a gradient G is sketched along its smaller side, R = P G [rank n] or
    G P^T [m rank], with P normal of variance 1 / rank. Adam's moments M and V are those of R, and what Adam makes of R,
    N = M / (sqrt V + eps), says by how much G itself is stretched: by |N| / |R|, of each channel of its larger side or
    of the whole. W moves by lr c sqrt(scale) G |N| / |R|, c being Adam's bias correction. An update whose norm is more
    than `growth_limit` times that of the one before is shortened to that (Fira, arXiv 2410.01623).

    P is drawn anew every `update_interval` steps, from `seeds` and the number of the draw, in each step again: it takes
    no memory. With `rank` 0 this is `torch.optim.AdamW`. The state holds tensors and integers.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seeds: Mapping[Any, str] | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        sketch = {"rank": 0, "update_interval": 200, "scale": 1.0, "granularity": "channel", "growth_limit": 1.01}
        super().__init__(params, {**defaults, **sketch})
        self.seeds = seeds or {}

    def move_(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """By its gradient, as long as Adam makes the sketch, or by Adam's direction."""
        if group["rank"]:
            direction = stretched(gradient, state, group, self.seeds.get(parameter, ""))
        else:
            direction = adam_direction(gradient, state, group)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"])


def stretched(gradient: Tensor, state: dict[str, Any], group: dict[str, Any], seed: str) -> Tensor:
    """The gradient [out in], each channel or the whole as long as Adam would make its sketch; counts the step."""
    wide = gradient.shape[0] < gradient.shape[1]
    basis = projection(gradient, group["rank"], f"{seed} {state.get('step', 0) // group['update_interval']}")
    sketch = basis @ gradient if wide else gradient @ basis.T  # [rank in] or [out rank]
    direction, correction = _uncorrected_direction(sketch, state, group)
    along = {"dim": 0 if wide else 1, "keepdim": True} if group["granularity"] == "channel" else {}
    factor = direction.norm(**along) / (sketch.norm(**along) + 1e-8)
    return _limited(gradient * factor, state, group["growth_limit"]).mul_(correction * math.sqrt(group["scale"]))


def projection(gradient: Tensor, rank: int, seed: str) -> Tensor:
    """A random matrix [rank, smaller side of the gradient] with normal numbers of variance 1 / rank."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    dice = torch.Generator(gradient.device).manual_seed(number)
    drawn = torch.randn(rank, min(gradient.shape), generator=dice, device=gradient.device)
    return drawn.div_(math.sqrt(rank)).to(gradient.dtype)


def _uncorrected_direction(sketch: Tensor, state: dict[str, Any], group: dict[str, Any]) -> tuple[Tensor, float]:
    """Adam's mean over root mean square, and apart from it what corrects the bias of both."""
    if "step" not in state:
        state |= {"step": 0, "exp_avg": torch.zeros_like(sketch), "exp_avg_sq": torch.zeros_like(sketch)}
    state["step"] += 1
    beta1, beta2 = group["betas"]
    state["exp_avg"].lerp_(sketch, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(sketch, sketch, value=1 - beta2)
    correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
    return state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(group["eps"]), correction


def _limited(update: Tensor, state: dict[str, Any], limit: float | None) -> Tensor:
    """The update, no longer than `limit` times the one before. Changes it in place, and keeps its norm."""
    if limit is None:
        return update
    norm = update.norm()
    if "norm" in state:
        excess = (norm / (state["norm"] + 1e-8)).clamp(min=limit) / limit
        update, norm = update.div_(excess), norm / excess
    state["norm"] = norm
    return update
