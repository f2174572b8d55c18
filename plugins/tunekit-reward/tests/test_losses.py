"""The loss of reward models: the formula in plain numbers, TRL on the same rewards, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.autograd import gradcheck

from tunekit_reward.losses import bradley_terry, off_centre

CHOSEN = torch.tensor([0.7, -0.3, 2.0], dtype=torch.float64)
REJECTED = torch.tensor([0.1, 0.4, -1.0], dtype=torch.float64)
MARGIN = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)


def log_sigma(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_the_loss_is_the_likelihood_that_the_chosen_answer_wins_by_the_margin() -> None:
    expected = [-log_sigma(0.6), -log_sigma(-1.2), -log_sigma(2.0)]
    assert bradley_terry(CHOSEN, REJECTED, MARGIN).tolist() == pytest.approx(expected, rel=1e-12)


def test_smoothing_mixes_in_the_pair_the_other_way_round() -> None:
    found = bradley_terry(CHOSEN, REJECTED, label_smoothing=0.2)
    expected = 0.8 * bradley_terry(CHOSEN, REJECTED) + 0.2 * bradley_terry(REJECTED, CHOSEN)
    assert torch.allclose(found, expected)


def test_equal_rewards_have_the_logarithm_of_2() -> None:
    assert bradley_terry(CHOSEN, CHOSEN).tolist() == pytest.approx([math.log(2)] * 3)


def test_rewards_far_apart_have_a_finite_loss() -> None:
    rewards = [torch.tensor(each, requires_grad=True) for each in ([1e4, -1e4, 1e4], [-1e4, 1e4, 1e4])]
    loss = bradley_terry(*rewards, label_smoothing=0.1) + 0.01 * off_centre(*rewards)
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(each).all() for each in torch.autograd.grad(loss.sum(), rewards))


def test_centring_is_the_square_of_the_sum_of_both_rewards() -> None:
    assert off_centre(CHOSEN, REJECTED).tolist() == pytest.approx([0.8**2, 0.1**2, 1.0], rel=1e-12)


def test_both_terms_are_those_of_trl(trl_loss: Callable[..., float]) -> None:
    found = bradley_terry(CHOSEN, REJECTED, MARGIN) + 0.3 * off_centre(CHOSEN, REJECTED)
    assert float(found.mean()) == pytest.approx(trl_loss(CHOSEN, REJECTED, MARGIN, 0.3), rel=1e-12)


def test_the_gradient_is_that_of_the_differences() -> None:
    inputs = [CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()]
    assert gradcheck(lambda chosen, rejected: bradley_terry(chosen, rejected, MARGIN, 0.1), inputs)
    assert gradcheck(off_centre, inputs)
