"""AdamW whose mean of squared gradients is one number for each unit of a parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tunekit_train.each_parameter import EachParameter


class AdamMiniW(EachParameter):
    """AdamW with a learning rate for each unit (Adam-mini, arXiv 2406.16793).

    v of a unit is the decayed mean, over steps, of the mean over the unit of g^2; the rest is AdamW. `unit` of a
    parameter group says what a unit is: `head`, so many rows of a matrix [out in] as `head_rows` says, `row`, `column`,
    `whole` or `number`. The state holds tensors and integers.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "unit": "row", "head_rows": 0})

    def move_(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """By the mean of gradients over the root of its unit's mean square."""
        square = _mean_square(_by_unit(gradient, group), group["unit"])
        if "step" not in state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(square)}
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).add_(square, alpha=1 - beta2)
        root = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        direction = (_by_unit(state["exp_avg"], group) / root).div_(1 - beta1 ** state["step"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(direction.view_as(parameter), alpha=group["lr"])


def _by_unit(values: Tensor, group: dict[str, Any]) -> Tensor:
    """A matrix [out in] by heads, [heads, head_rows * in]; others as they are."""
    if group["unit"] != "head":
        return values
    return values.reshape(values.shape[0] // group["head_rows"], -1)


def _mean_square(gradient: Tensor, unit: str) -> Tensor:
    squares = gradient.square()
    if unit == "number":
        return squares
    if unit == "whole":
        return squares.mean()
    return squares.mean(dim=0 if unit == "column" else -1, keepdim=True)
