"""Advantages and losses against loops written from the papers, and their gradients in double precision."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch.autograd import gradcheck

from tunekit_ppo.advantages import explained_variance, generalised_advantages, whiten
from tunekit_ppo.control import Control
from tunekit_ppo.losses import divergence, policy_losses, value_losses
from tunekit_ppo.options import KlConfig

DOUBLE = torch.float64


def advantages_of_one(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 of arXiv:1506.02438 as it is written: a sum over the whole future, of deltas as in equation 9."""
    count = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(count)]
    return [sum((gamma * lam) ** ahead * deltas[t + ahead] for ahead in range(count - t)) for t in range(count)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (0.97, 1.0)])
def test_advantages_are_the_papers_sum_whatever_the_padding(gamma: float, lam: float) -> None:
    dice = random.Random(3)
    lengths = [5, 1, 8, 3]
    rows = [([dice.gauss(0, 1) for _ in range(n)], [dice.gauss(0, 1) for _ in range(n)]) for n in lengths]
    real = torch.arange(8) < torch.tensor(lengths)[:, None]
    rewards, values = (torch.full((4, 8), 77.0, dtype=DOUBLE) for _ in range(2))
    for at, (given, valued) in enumerate(rows):
        rewards[at, : lengths[at]], values[at, : lengths[at]] = (torch.tensor(x, dtype=DOUBLE) for x in (given, valued))
    advantages, returns = generalised_advantages(rewards, values, real, gamma, lam)
    for at, (given, valued) in enumerate(rows):
        expected = advantages_of_one(given, valued, gamma, lam)
        assert advantages[at, : lengths[at]].tolist() == pytest.approx(expected, rel=1e-12)
        assert returns[at, : lengths[at]].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, valued, strict=True)], rel=1e-12
        )
    assert not advantages[~real].any()
    assert not returns[~real].any()


def test_with_full_trace_the_return_is_the_discounted_sum_of_rewards() -> None:
    rewards, values = torch.tensor([[1.0, -2.0, 4.0]], dtype=DOUBLE), torch.tensor([[0.3, 0.1, -5.0]], dtype=DOUBLE)
    _, returns = generalised_advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.5, 1.0)
    assert returns.tolist()[0] == pytest.approx([1 - 1 + 1, -2 + 2, 4])


def test_the_policy_loss_is_the_clipped_surrogate() -> None:
    ratios, gains = [0.5, 0.9, 1.0, 1.3, 1.3, 0.5], [1.0, -2.0, 3.0, 1.0, -1.0, -1.0]
    expected = [-min(r * a, min(max(r, 0.8), 1.2) * a) for r, a in zip(ratios, gains, strict=True)]
    old = torch.tensor([-1.0, -2.0, -0.5, -3.0, -1.0, -1.0], dtype=DOUBLE)
    log_probs = old + torch.tensor(ratios, dtype=DOUBLE).log()
    found = policy_losses(log_probs, old, torch.tensor(gains, dtype=DOUBLE), 0.2)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_at_the_start_the_gradient_is_that_of_the_policy_gradient() -> None:
    log_probs = torch.tensor([-1.0, -2.0], dtype=DOUBLE, requires_grad=True)
    policy_losses(log_probs, log_probs.detach(), torch.tensor([2.0, -3.0], dtype=DOUBLE), 0.2).sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [-2.0, 3.0]


def test_the_value_loss_is_the_larger_of_the_plain_and_the_held_one() -> None:
    values, old, returns = [1.0, 0.1, -1.0], [0.0, 0.0, 0.0], [2.0, 1.0, -0.1]
    held = [min(max(v, o - 0.2), o + 0.2) for v, o in zip(values, old, strict=True)]
    expected = [0.5 * max((v - r) ** 2, (h - r) ** 2) for v, h, r in zip(values, held, returns, strict=True)]
    found = value_losses(*(torch.tensor(x, dtype=DOUBLE) for x in (values, old, returns)), 0.2)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_gradients_of_the_losses_are_those_of_their_differences() -> None:
    torch.manual_seed(0)
    given, old, other = (torch.randn(7, dtype=DOUBLE) for _ in range(3))
    given.requires_grad_()
    assert gradcheck(lambda x: policy_losses(x, old, other, 0.2), given)
    assert gradcheck(lambda x: value_losses(x, old, other, 0.2), given)
    for estimator in ("k1", "k2", "k3"):
        assert gradcheck(lambda x, kind=estimator: divergence(x, other, kind), given)


def test_the_estimators_of_a_divergence_have_its_mean() -> None:
    torch.manual_seed(0)
    one, two = (torch.randn(6, dtype=DOUBLE).log_softmax(-1) for _ in range(2))
    true = float((one.exp() * (one - two)).sum())
    means = {kind: float((one.exp() * divergence(one, two, kind)).sum()) for kind in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(true, rel=1e-12)
    assert means["k3"] == pytest.approx(true, rel=1e-12)
    assert means["k2"] == pytest.approx(float((one.exp() * (one - two) ** 2).sum()) / 2, rel=1e-12)
    assert (divergence(one, two, "k3") >= 0).all()


def test_whitening_gives_what_is_real_mean_0_and_variance_1() -> None:
    torch.manual_seed(0)
    values, real = torch.randn(4, 6, dtype=DOUBLE) * 3 + 5, torch.rand(4, 6) > 0.3
    centred, scaled = whiten(values, real), whiten(values, real, centre=False)
    assert float(centred[real].mean()) == pytest.approx(0, abs=1e-9)
    assert float(scaled[real].mean()) == pytest.approx(float(values[real].mean()), rel=1e-9)
    for found in (centred, scaled):
        assert float(found[real].var(unbiased=False)) == pytest.approx(1, rel=1e-6)
        assert not found[~real].any()


def test_variance_is_explained_wholly_not_at_all_or_worse() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.zeros(3), returns) == 0
    assert explained_variance(-returns, returns) == pytest.approx(-3)
    assert explained_variance(torch.zeros(3), torch.ones(3)) == 0


def test_adaptive_control_is_that_of_the_paper_and_fixed_control_stands() -> None:
    options = KlConfig(coefficient=0.1, control="adaptive", target=5.0, horizon=100)
    control, expected = Control.of(options), 0.1
    for divergence_of_rollout in (20.0, 5.5, 5.0, 1.0):
        control.update_(divergence_of_rollout, 10)
        expected *= 1 + max(-0.2, min(0.2, (divergence_of_rollout - 5.0) / 5.0)) * 10 / 100
        assert control.coefficient == pytest.approx(expected, rel=1e-12)
    fixed = Control.of(KlConfig(coefficient=0.1))
    fixed.update_(math.inf, 10)
    assert fixed.coefficient == 0.1
