"""ORPO, SimPO and CPO: the papers' formulas in plain numbers, their gradients, and answers far from everything."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tunekit_dpo import Cpo, Orpo, Simpo
from tunekit_dpo.pairs import Answers
from tunekit_dpo.reference_free import ReferenceFree

CHOSEN, REJECTED = [-2.0, -1.0, -6.0], [-3.0, -7.0, -2.0]
CHOSEN_SIZES, REJECTED_SIZES = [3.0, 1.0, 4.0], [2.0, 5.0, 4.0]
STAGES = [Orpo(beta=0.6), Simpo(beta=1.5, gamma=0.7), Cpo(beta=0.4, label_smoothing=0.1)]


def log_sigma(x: float) -> float:
    return -math.log1p(math.exp(-x))


def log_odds(mean: float) -> float:
    """log(P / (1 - P)) at log P = mean."""
    return math.log(math.exp(mean) / (1 - math.exp(mean)))


def orpo(w: float, v: float, nw: float, nv: float) -> float:
    """arXiv:2403.07691, equations 6 and 7, lambda 0.6."""
    return 0.6 * -log_sigma(log_odds(w / nw) - log_odds(v / nv))


def simpo(w: float, v: float, nw: float, nv: float) -> float:
    """arXiv:2405.14734, equation 6, beta 1.5, gamma 0.7."""
    return -log_sigma(1.5 / nw * w - 1.5 / nv * v - 0.7)


def cpo(w: float, v: float, nw: float, nv: float) -> float:
    """arXiv:2401.08417, equation 3, beta 0.4, one pair in ten the wrong way round."""
    return -0.9 * log_sigma(0.4 * (w - v)) - 0.1 * log_sigma(0.4 * (v - w))


def answers(chosen: Tensor, rejected: Tensor) -> Answers:
    sizes = (torch.tensor(each, dtype=chosen.dtype) for each in (CHOSEN_SIZES, REJECTED_SIZES))
    return Answers(chosen, rejected, *sizes)


def objective_of(stage: Any) -> ReferenceFree:
    made = stage.objective()
    assert isinstance(made, ReferenceFree)
    return made


@pytest.mark.parametrize(
    ("stage", "paper"), list(zip(STAGES, (orpo, simpo, cpo), strict=True)), ids=["orpo", "simpo", "cpo"]
)
def test_the_preference_is_the_formula_of_its_paper(stage: Any, paper: Any) -> None:
    given = answers(torch.tensor(CHOSEN, dtype=torch.float64), torch.tensor(REJECTED, dtype=torch.float64))
    expected = map(paper, CHOSEN, REJECTED, CHOSEN_SIZES, REJECTED_SIZES)
    assert objective_of(stage).preference(given).tolist() == pytest.approx(list(expected), rel=1e-12)


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_the_gradient_is_that_of_the_differences(stage: Any) -> None:
    objective = objective_of(stage)
    inputs = [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (CHOSEN, REJECTED)]
    assert gradcheck(lambda chosen, rejected: objective.preference(answers(chosen, rejected)), inputs)


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_answers_that_are_certain_or_impossible_have_a_finite_loss(stage: Any) -> None:
    chosen = torch.tensor([-1e4, 0.0, -1e4], requires_grad=True)
    rejected = torch.tensor([0.0, -1e4, -1e4], requires_grad=True)
    loss = objective_of(stage).preference(answers(chosen, rejected))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    for answer in (chosen, rejected):
        assert answer.grad is not None
        assert torch.isfinite(answer.grad).all()
