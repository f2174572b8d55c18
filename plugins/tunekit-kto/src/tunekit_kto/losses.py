"""The losses of KTO, each a pure function on tensors of answers.

r = beta (logp under the policy - logp under the reference) is the reward of an answer, [answers]; `good` says which of
them are called good, bool [answers]. Every function returns one loss per answer, [answers], before class weights.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kto(rewards: Tensor, good: Tensor, kl_reward: Tensor) -> Tensor:
    """1 - sigmoid(r - z) where good, 1 - sigmoid(z - r) where bad; z = kl_reward, [] without gradient.

    KTO: Model Alignment as Prospect Theoretic Optimization, arXiv:2402.01306, equations 7 and 8 with the beta there
    written into r and z = beta KL.
    """
    return torch.sigmoid(_sign(rewards, good) * (kl_reward - rewards))


def apo_zero_unpaired(rewards: Tensor, good: Tensor) -> Tensor:
    """1 - sigmoid(r) where good, sigmoid(r) where bad: `kto` with no KL term.

    Anchored Preference Optimization, arXiv:2408.06266, equation 7, on single answers.
    """
    return torch.sigmoid(-_sign(rewards, good) * rewards)


def kl_estimate(policy: Tensor, reference: Tensor) -> Tensor:
    """max(0, mean(logp under the policy - logp under the reference)) over mismatched answers, [] without gradient.

    How far the policy is from its reference, told from prompts with answers to other prompts (section 4.1 of the KTO
    paper). It is biased, and too low a value is clamped at 0.
    """
    return (policy - reference).detach().mean().clamp(min=0)


def _sign(rewards: Tensor, good: Tensor) -> Tensor:
    """1 where good, -1 where bad."""
    return torch.where(good, 1.0, -1.0).to(rewards.dtype)
