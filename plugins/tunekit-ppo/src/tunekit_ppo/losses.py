"""The losses of PPO, pure functions on tensors of tokens, and the estimators of a KL divergence.

Proximal Policy Optimization Algorithms, arXiv:1707.06347.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .options import KlEstimator


def policy_losses(log_probs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(r A, clip(r, 1 - e, 1 + e) A) with r = pi(a) / pi_old(a), e = clip; [tokens].

    Equation 7 of the paper, its sign turned. `log_probs` [tokens] carry the gradient, `old` are those of the rollout.
    """
    ratio = (log_probs - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2) / 2; [tokens].

    As in the code of Fine-Tuning Language Models from Human Preferences, arXiv:1909.08593. TRL has the same.
    """
    held = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)


def divergence(log_probs: Tensor, others: Tensor, estimator: KlEstimator) -> Tensor:
    """An estimate of KL(pi || other) at each token, from the one token that was sampled from pi; [tokens].

    With l = log pi(a) - log other(a): k1 = l, k2 = l^2 / 2, k3 = e^-l - 1 + l. k1 and k3 have the right mean, and k3 is
    never negative; k2 has the right gradient. J. Schulman, Approximating KL Divergence, 2020.
    """
    ratio = log_probs - others
    if estimator == "k1":
        return ratio
    return ratio**2 / 2 if estimator == "k2" else (-ratio).exp() - 1 + ratio
