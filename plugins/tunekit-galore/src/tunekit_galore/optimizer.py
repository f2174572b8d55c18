"""AdamW whose moments live in a subspace of the gradient for some of its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from tunekit_train.adamw import adam_direction
from tunekit_train.each_parameter import EachParameter

from . import Projection


class GaloreAdamW(EachParameter):
    """AdamW with gradient low-rank projection (GaLore, arXiv 2403.03507).

    In a parameter group with `rank` > 0, a gradient G [out in] is projected to R = P^T G (left) or G Q^T (right),
    Adam's direction N is computed from R, and the weight moves by lr * scale * P N (or N Q). P [out rank] and
    Q [rank in] are the gradient's leading singular vectors, found again every `update_interval` steps; the moments are
    kept through that, as in the paper. With `rank` 0 this is `torch.optim.AdamW`. The state holds tensors and integers.

    The signs of singular vectors are arbitrary, and kept moments would be turned round by them at random. So each new
    vector gets the sign that agrees with the one it replaces.
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
        super().__init__(params, {**defaults, "rank": 0, "update_interval": 200, "scale": 0.25, "projection": "std"})

    def move_(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """By Adam's direction, in the subspace where there is one."""
        direction = _projected(gradient, state, group) if group["rank"] else adam_direction(gradient, state, group)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"])


def projected_side(shape: tuple[int, ...], projection: Projection) -> Literal["left", "right"]:
    """Which side of a matrix [out in] is projected: `left` shrinks out, `right` shrinks in."""
    if projection == "left" or projection == "right":
        return projection
    tall = shape[0] >= shape[1]
    return "right" if tall == (projection == "std") else "left"


def leading_vectors(gradient: Tensor, rank: int, side: str, former: Tensor | None = None) -> Tensor:
    """Find the leading singular vectors of a gradient [out in]: left [out rank] or right [rank in].

    As eigenvectors of G G^T (or G^T G) in float64, several times faster than a singular value decomposition and as
    exact as one in float32. Signs agree with `former`, the vectors of the choice before.
    """
    exact = (gradient.cpu() if gradient.device.type == "mps" else gradient).double()  # mps has no float64
    _, vectors = torch.linalg.eigh(exact @ exact.T if side == "left" else exact.T @ exact)
    leading: Tensor = vectors[:, -rank:].flip(1).to(gradient)  # eigenvalues ascend
    leading = leading if side == "left" else leading.T
    if former is not None:
        agreement = (leading * former).sum(0 if side == "left" else 1, keepdim=True)
        leading = leading * torch.where(agreement < 0, -1.0, 1.0).to(leading)
    return leading.contiguous()


def _projected(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Adam's direction in the subspace, brought back to the shape of the gradient and scaled."""
    side = projected_side(tuple(gradient.shape), group["projection"])
    if state.get("step", 0) % group["update_interval"] == 0:
        state["basis"] = leading_vectors(gradient, group["rank"], side, state.get("basis"))
    basis: Tensor = state["basis"]
    scale: float = group["scale"]
    if side == "left":
        return basis.matmul(adam_direction(basis.T @ gradient, state, group)).mul(scale)
    return adam_direction(gradient @ basis.T, state, group).matmul(basis).mul(scale)
