"""The factors that adapters start as. A layer computes W x + s B A x; W is [out in], A [rank in], B [out rank]."""

from __future__ import annotations

import torch
from torch import Tensor

from tunekit_lora.residual import Factors

DAMPING = 0.01
"""The share of its mean diagonal that is added to a covariance, doubled until it can be inverted."""
INVERTED = 0.05
"""How far the product of a covariance and its inverse may be from the identity, in the Frobenius norm."""


def orthogonal_factors(out: int, inputs: int, rank: int) -> Factors:
    """Random A and B with B A = 0: A mixes the odd rows of a rotation of the ranks, B the even ones.

    Source: "Rethinking LoRA initialisation" (datta0.github.io/posts/rethink-lora-init), as in PEFT.
    """
    rotation, _ = torch.linalg.qr(torch.randn(rank, rank))  # [rank rank]
    down = (torch.randn(inputs, rank // 2) @ rotation[0::2]).T / 10
    up = torch.randn(out, rank // 2) @ rotation[1::2] / 10
    return Factors(down.contiguous(), up.contiguous())


def olora_factors(weight: Tensor, rank: int) -> Factors:
    """W = Q R: the first columns of Q and rows of R (OLoRA: Orthonormal Low-Rank Adaptation, arXiv 2406.01775)."""
    orthonormal, triangular = torch.linalg.qr(weight)
    return Factors(triangular[:rank], orthonormal[:, :rank])


def corda_factors(weight: Tensor, covariance: Tensor, rank: int, scale: float, task: bool) -> Factors:
    """W C = U S V^T gives s B A = U S (V^T C^-1), cut to `rank` parts: the first (`task`) or the last.

    `covariance` C is [in in], of the layer's inputs (CorDA, arXiv 2406.05223, section 3).
    """
    damped, inverse = _inverted(covariance)
    left, values, right = torch.linalg.svd(weight @ damped, full_matrices=False)
    right = right @ inverse
    part = slice(None, rank) if task else slice(len(values) - rank, None)
    root = (values[part] / scale).sqrt()
    return Factors(root[:, None] * right[part], left[:, part] * root)


def _inverted(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The covariance with enough added to its diagonal, and its inverse."""
    identity, damping = torch.eye(len(covariance)), DAMPING
    identity = identity.to(covariance)
    while True:
        damped = covariance + damping * covariance.diagonal().mean() * identity
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, identity) < INVERTED:
            return damped, inverse
        damping *= 2


def loraga_factors(gradient: Tensor, rank: int, direction: str, gamma: float) -> Factors:
    """Singular vectors of the gradient [out in] of a weight, both scaled by out^(1/4) / sqrt(gamma).

    Of the first 2 rank: A takes right ones, B left ones, never those of the same singular value (LoRA-GA, arXiv
    2407.05000, section 3.2 and its stable scale in section 3.3).
    """
    most = min(gradient.shape)
    left, _, right = torch.svd_lowrank(gradient, q=min(4 * rank, most), niter=16)  # [out q], [q], [in q]
    first, second = slice(0, rank), slice(rank, 2 * rank)
    if direction == "ArBr":
        first, second = slice(0, 2 * rank, 2), slice(1, 2 * rank, 2)  # B, A
        columns, rows = first, second
    else:
        columns, rows = (second, first) if direction == "ArB2r" else (first, second)
    scale = gradient.shape[0] ** 0.25 / gamma**0.5
    return Factors(scale * right[:, rows].T, scale * left[:, columns])


def principal_directions(total: Tensor, products: Tensor, count: int, rank: int) -> Tensor:
    """The directions [rank in] in which inputs vary most, from the sum [in] and the products [in in] of `count` rows.

    They are what incremental decompositions of the centred inputs come to (EVA, arXiv 2410.07170, section 3.2).
    """
    mean = total / count
    _, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))  # ascending, in columns
    found: Tensor = vectors[:, -rank:].flip(1).T
    return found.float().contiguous()


def best_factors(matrix: Tensor, rank: int, scale: float) -> Factors:
    """The A and B whose s B A is nearest to a matrix [out in]."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return Factors(root[:, None] * right[:rank], left[:, :rank] * root)
