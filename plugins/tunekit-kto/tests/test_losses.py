"""The losses of KTO: the paper's formulas in plain numbers, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tunekit_kto.losses import apo_zero_unpaired, kl_estimate, kto

REWARDS = torch.tensor([0.7, -0.3, 0.2, -1.5], dtype=torch.float64)
GOOD = torch.tensor([True, False, False, True])


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_good_answers_are_to_lie_above_the_anchor_and_bad_ones_below() -> None:
    found = kto(REWARDS, GOOD, torch.tensor(0.25, dtype=torch.float64))
    expected = [1 - sigma(0.7 - 0.25), 1 - sigma(0.25 + 0.3), 1 - sigma(0.25 - 0.2), 1 - sigma(-1.5 - 0.25)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_without_an_anchor_rewards_are_compared_with_0() -> None:
    expected = [1 - sigma(0.7), sigma(-0.3), sigma(0.2), 1 - sigma(-1.5)]
    assert apo_zero_unpaired(REWARDS, GOOD).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_policy_that_is_its_reference_has_one_half() -> None:
    nothing = torch.zeros(4)
    assert kto(nothing, GOOD, kl_estimate(nothing, nothing)).tolist() == [0.5] * 4
    assert apo_zero_unpaired(nothing, GOOD).tolist() == [0.5] * 4


def test_the_kl_estimate_is_a_mean_that_is_never_negative_and_has_no_gradient() -> None:
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    found = kl_estimate(policy, torch.tensor([-2.0, -2.5]))
    assert float(found) == pytest.approx(0.75)
    assert not found.requires_grad
    assert float(kl_estimate(policy, torch.tensor([0.0, 0.0]))) == 0


def test_the_gradient_is_that_of_the_differences() -> None:
    rewards = REWARDS.clone().requires_grad_()

    def anchored(values: Tensor) -> Tensor:
        return kto(values, GOOD, torch.tensor(0.25))

    assert gradcheck(anchored, [rewards])
    assert gradcheck(lambda values: apo_zero_unpaired(values, GOOD), [rewards])


def test_answers_that_are_certain_or_impossible_have_a_finite_loss() -> None:
    rewards = torch.tensor([1e4, 1e4, -1e4, -1e4], requires_grad=True)
    for anchor in (0.0, 1e4):
        loss = kto(rewards, GOOD, torch.tensor(anchor)) + apo_zero_unpaired(rewards, GOOD)
        (gradient,) = torch.autograd.grad(loss.sum(), rewards)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()
