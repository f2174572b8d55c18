"""From rewards and values to advantages and returns, pure functions on padded tensors."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-8


def generalised_advantages(
    rewards: Tensor, values: Tensor, real: Tensor, discount: float, trace: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both [answers, tokens], 0 where nothing is `real`.

    delta_t = r_t + gamma V(t + 1) - V(t), A_t = delta_t + gamma lambda A_(t + 1), R_t = A_t + V(t); behind its last
    token an answer is worth nothing. gamma = discount, lambda = trace. High-Dimensional Continuous Control Using
    Generalized Advantage Estimation, arXiv:1506.02438, equations 11 to 16. Answers are padded on the right.
    """
    advantages = torch.zeros_like(rewards)
    ahead, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for at in range(rewards.shape[1] - 1, -1, -1):
        here = real[:, at].to(rewards.dtype)
        delta = rewards[:, at] + discount * next_value - values[:, at]
        ahead = (delta + discount * trace * ahead) * here
        next_value = values[:, at] * here
        advantages[:, at] = ahead
    return advantages, (advantages + values) * real


def whiten(values: Tensor, real: Tensor, centre: bool = True) -> Tensor:
    """Give what is `real` variance 1, and mean 0 where `centre`; the rest is 0."""
    chosen = values[real]
    mean, variance = chosen.mean(), chosen.var(unbiased=False)
    scaled = (values - mean) * torch.rsqrt(variance + TINY)
    return torch.where(real, scaled if centre else scaled + mean, torch.zeros_like(values))


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over tokens: 1 where values foretell the returns, 0 where a constant would do as well."""
    spread = float(returns.var(unbiased=False))
    return 1 - float((returns - values).var(unbiased=False)) / spread if spread > TINY else 0.0
