"""Every loss of preferences: the papers' formulas in plain numbers, TRL on the same tokens, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tunekit_dpo.comparing import Compared, Settings, pair_losses
from tunekit_dpo.divergences import slope
from tunekit_dpo.names import OF_DIFFERENCE, Divergence, LossName
from tunekit_dpo.odds import odds_ratio
from tunekit_dpo.pairs import Answers, tail_factors

NAMES: tuple[LossName, ...] = get_args(LossName)
SMOOTHING = {"exo": 1e-3, "robust": 0.1}
BETA = 0.3
TRL_NAMES = {"exo": "exo_pair", "bco": "bco_pair", "nca": "nca_pair", "sppo": "sppo_hard"}


def log_sigma(x: float) -> float:
    return -math.log1p(math.exp(-x))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def smooth(x: float, e: float) -> float:
    return -(1 - e) * log_sigma(x) - e * log_sigma(-x)


def paper(name: str, w: float, v: float, nw: float, nv: float, b: float, e: float) -> float:
    """The formula of each paper for one pair: log-ratios w and v, tokens nw and nv, beta and epsilon."""
    d = b * (w - v)
    return {
        "sigmoid": lambda: smooth(d, e),
        "sigmoid_norm": lambda: smooth(b * (w / nw - v / nv), e),
        "hinge": lambda: max(0.0, 1 - d),
        "ipo": lambda: (w / nw - v / nv - 1 / (2 * b)) ** 2,
        "robust": lambda: (-(1 - e) * log_sigma(d) + e * log_sigma(-d)) / (1 - 2 * e),
        "exo": lambda: sigma(d) * math.log(sigma(d) / (1 - e)) + sigma(-d) * math.log(sigma(-d) / e),
        "discopop": lambda: -log_sigma(d) * (1 - sigma(d / 0.05)) + math.exp(-d) * sigma(d / 0.05),
        "bco": lambda: -log_sigma(b * w) - log_sigma(-b * v),
        "nca": lambda: -log_sigma(b * w) - 0.5 * log_sigma(-b * w) - 0.5 * log_sigma(-b * v),
        "sppo": lambda: (w - 1 / (2 * b)) ** 2 + (v + 1 / (2 * b)) ** 2,
        "apo_zero": lambda: (1 - sigma(b * w)) + sigma(b * v),
        "apo_down": lambda: sigma(b * w) + (1 - sigma(b * (w - v))),
    }[name]()


def compared(policy: list[Tensor], reference: list[Tensor], settings: Settings, margin: Any = 0.0) -> Compared:
    sizes = [torch.tensor([3.0, 1, 4], dtype=torch.float64), torch.tensor([2.0, 5, 4], dtype=torch.float64)]
    return Compared(Answers(*policy, *sizes), Answers(*reference, *sizes), torch.as_tensor(margin), settings)


def three_pairs(settings: Settings, margin: Any = 0.0, shift: float = 1.0) -> Compared:
    policy = [torch.tensor([-2.0, -1, -6], dtype=torch.float64), torch.tensor([-3.0, -7, -2], dtype=torch.float64)]
    reference = [torch.tensor([-3.0, -2, -4], dtype=torch.float64), torch.tensor([-2.5, -6, -3], dtype=torch.float64)]
    return compared(
        [shift * p + (1 - shift) * r for p, r in zip(policy, reference, strict=True)], reference, settings, margin
    )


def settings_of(name: str, **changes: Any) -> Settings:
    return Settings(**{"beta": BETA, "label_smoothing": SMOOTHING.get(name, 0.0), **changes})


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("aot")])
def test_a_loss_is_the_formula_of_its_paper(name: LossName) -> None:
    found = pair_losses(name, three_pairs(settings_of(name)))
    expected = [
        paper(name, w, v, nw, nv, BETA, SMOOTHING.get(name, 0.0))
        for w, v, nw, nv in ((1, -0.5, 3, 2), (1, -1, 1, 5), (-2, 1, 4, 4))
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_aot_compares_quantile_with_quantile() -> None:
    settings = settings_of("aot")
    paired = pair_losses("aot", three_pairs(settings))
    policy, reference = sorted([1.0, 6.0, -4.0]), sorted([-0.5, 4.0, -1.0])
    expected = [-log_sigma(BETA * (p - r)) for p, r in zip(policy, reference, strict=True)]
    assert paired.tolist() == pytest.approx(expected, rel=1e-12)
    unpaired = pair_losses("aot_unpaired", three_pairs(settings))
    chosen, rejected = sorted([1.0, 1.0, -2.0]), sorted([-0.5, -1.0, 1.0])
    expected = [-log_sigma(BETA * (c - r)) for c, r in zip(chosen, rejected, strict=True)]
    assert unpaired.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", math.log(2)),
        ("sigmoid_norm", math.log(2)),
        ("robust", math.log(2)),
        ("aot", math.log(2)),
        ("aot_unpaired", math.log(2)),
        ("hinge", 1.0),
        ("ipo", 1 / (4 * BETA**2)),
        ("bco", 2 * math.log(2)),
        ("nca", 2 * math.log(2)),
        ("sppo", 1 / (2 * BETA**2)),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
        ("discopop", (math.log(2) + 1) / 2),
        ("exo", 0.5 * math.log(0.5 / 0.999) + 0.5 * math.log(0.5 / 0.001)),
    ],
)
def test_a_policy_that_is_its_reference_has_the_loss_the_formula_gives(name: LossName, expected: float) -> None:
    found = pair_losses(name, three_pairs(settings_of(name), shift=0.0))
    assert found.tolist() == pytest.approx([expected] * 3, rel=1e-12)


def test_every_loss_has_its_value_at_the_reference_tested() -> None:
    (mark,) = [
        mark
        for mark in test_a_policy_that_is_its_reference_has_the_loss_the_formula_gives.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    ]
    assert {name for name, _ in mark.args[1]} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_that_of_trl(name: LossName, tokens: Any, trl_loss: Callable[..., float]) -> None:
    smoothing = SMOOTHING.get(name, 0.1 if name.startswith("aot") else 0.0)
    found = pair_losses(name, tokens_compared(tokens, Settings(BETA, smoothing))).mean()
    expected = trl_loss(tokens, {TRL_NAMES.get(name, name): 1.0}, beta=BETA, label_smoothing=smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-6)  # TRL has the smoothing of exo in fp32


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo", "robust", "discopop"])
@pytest.mark.parametrize(
    ("divergence", "trl"), [("forward_kl", "forward_kl"), ("js", "js_divergence"), ("alpha", "alpha_divergence")]
)
def test_a_divergence_is_that_of_trl(
    name: LossName, divergence: Divergence, trl: str, tokens: Any, trl_loss: Callable[..., float]
) -> None:
    smoothing = SMOOTHING.get(name, 0.0)
    settings = Settings(BETA, smoothing, divergence, divergence_alpha=0.3)
    tokens = replace(tokens, policy=tokens.policy.float(), reference=tokens.reference.float())  # all TRL takes
    found = pair_losses(name, tokens_compared(tokens, settings)).mean()
    options = {"f_divergence_type": trl, "f_alpha_divergence_coef": 0.7}
    expected = trl_loss(tokens, {TRL_NAMES.get(name, name): 1.0}, beta=BETA, label_smoothing=smoothing, **options)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_tails_that_count_less_are_those_of_trl(tokens: Any, trl_loss: Callable[..., float]) -> None:
    found = pair_losses("sigmoid", tokens_compared(tokens, Settings(BETA), tail_weight=0.4)).mean()
    assert float(found) == pytest.approx(trl_loss(tokens, {"sigmoid": 1.0}, beta=BETA, ld_alpha=0.4), rel=1e-9)
    assert float(found) != pytest.approx(trl_loss(tokens, {"sigmoid": 1.0}, beta=BETA), rel=1e-3)


def tokens_compared(tokens: Any, settings: Settings, tail_weight: float = 1.0) -> Compared:
    policy, reference = (
        Answers.of(tokens.scores(each), tokens.pairs, tail_weight) for each in (tokens.policy, tokens.reference)
    )
    return Compared(policy, reference, torch.tensor(0.0), settings)


def test_tail_factors_spare_the_tokens_that_both_answers_have() -> None:
    owners = torch.tensor([0, 0, 0, 1, 2, 3, 3])
    assert tail_factors(owners, 4, 0.5).tolist() == [1, 0.5, 0.5, 1, 1, 1, 0.5]


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_a_loss_is_that_of_its_differences(name: LossName) -> None:
    smoothing = SMOOTHING.get(name, 0.1)
    dice = torch.Generator().manual_seed(3)
    policy = [torch.randn(3, generator=dice, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    reference = [torch.randn(3, generator=dice, dtype=torch.float64) for _ in range(2)]

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return pair_losses(name, compared([chosen, rejected], reference, Settings(BETA, smoothing)), shift=0.2)

    assert gradcheck(loss, policy)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_the_gradient_through_a_divergence_is_that_of_its_differences(divergence: Divergence) -> None:
    ratio = torch.linspace(-2, 2, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: slope(x, divergence, 0.3), [ratio])


def test_the_alpha_divergence_lies_between_the_two_kls() -> None:
    ratio = torch.linspace(-3, 3, 7, dtype=torch.float64)
    near_reverse, near_forward = slope(ratio, "alpha", 1e-9), slope(ratio, "alpha", 1 - 1e-9)
    assert torch.allclose(near_reverse, slope(ratio, "reverse_kl", 0.5), atol=1e-6)
    assert torch.allclose(near_forward, slope(ratio, "forward_kl", 0.5), atol=1e-6)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_an_answer_that_has_become_impossible_keeps_the_loss_finite(divergence: Divergence) -> None:
    ratio = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = slope(ratio, divergence, 0.5)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert ratio.grad is not None
    assert torch.isfinite(ratio.grad).all()


FARTHEST = [(1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (-1e4, -1e4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "divergence"),
    [
        *((name, "reverse_kl") for name in NAMES),
        *((name, each) for name in sorted(OF_DIFFERENCE) for each in ("forward_kl", "js", "alpha")),
    ],
)
def test_a_loss_of_answers_that_are_certain_or_impossible_is_finite(
    name: LossName, divergence: Divergence, dtype: torch.dtype
) -> None:
    answers = [torch.tensor(side, dtype=dtype, requires_grad=True) for side in zip(*FARTHEST, strict=True)]
    nothing, sizes = torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype)
    settings = Settings(beta=1.0, label_smoothing=0.1, divergence=divergence)
    pairs = Compared(Answers(*answers, sizes, sizes), Answers(nothing, nothing, sizes, sizes), nothing, settings)
    loss = pair_losses(name, pairs, shift=0.2)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    for answer in answers:
        assert answer.grad is not None
        assert torch.isfinite(answer.grad).all()


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "hinge", "robust", "exo", "discopop"])
def test_a_margin_is_taken_from_the_difference_of_the_rewards(name: LossName) -> None:
    settings = settings_of(name)
    with_margin = pair_losses(name, three_pairs(settings, torch.tensor([0.5, 0.0, 0.0])))
    bare = pair_losses(name, three_pairs(settings))
    assert with_margin[1:].tolist() == bare[1:].tolist()
    offset = {"sigmoid_norm": BETA * (1 / 3 + 0.25) - 0.5}.get(name, BETA * 1.5 - 0.5)
    expected = paper(
        "sigmoid" if name == "sigmoid_norm" else name, offset / BETA, 0, 1, 1, BETA, settings.label_smoothing
    )
    assert float(with_margin[0]) == pytest.approx(expected, rel=1e-12)


def test_the_shift_of_bco_is_taken_from_both_rewards() -> None:
    found = pair_losses("bco", three_pairs(settings_of("bco")), shift=0.2)
    assert float(found[0]) == pytest.approx(-log_sigma(BETA - 0.2) - log_sigma(0.2 + BETA * 0.5), rel=1e-12)


def test_the_odds_ratio_is_that_of_the_formula() -> None:
    chosen, rejected = torch.tensor([-0.1, -3.0, -1e-3, -40.0]), torch.tensor([-2.0, -0.5, -9.0, -0.2])
    found = odds_ratio(chosen.double(), rejected.double())

    def log_odds(log_p: float) -> float:
        return log_p - math.log(1 - math.exp(log_p))

    expected = [-log_sigma(log_odds(c) - log_odds(r)) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_the_odds_ratio_stays_finite_where_an_answer_is_certain() -> None:
    chosen = torch.tensor([0.0, -1e-12, -1e3], requires_grad=True)
    loss = odds_ratio(chosen, torch.tensor([-1e3, -1.0, 0.0]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()


def test_the_gradient_of_the_odds_ratio_is_that_of_its_differences() -> None:
    inputs = [torch.tensor([-0.1, -3.0, -0.68, -0.71], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert gradcheck(odds_ratio, inputs)
