"""Every option of the four stages acts: by TRL's loss on the same tokens, by the formula, or by the trained weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunekit.testing.options import own_options
from tunekit_dpo import Cpo, Dpo, Orpo, Simpo
from tunekit_train import Item, Objective, Provided, ReferenceLogProbs, Sum, TokenLogProbs, train
from tunekit_train.testing import bundle, context, random_items, tiny_llama

Evidence = Callable[[Any, Callable[..., float], Path], None]
EVIDENCE: dict[tuple[type, str], Evidence] = {}


def evidence(stage: type, *options: str) -> Callable[[Evidence], Evidence]:
    """Register what shows that these options of a stage act."""

    def register(function: Evidence) -> Evidence:
        EVIDENCE.update({(stage, option): function for option in options})
        return function

    return register


@pytest.mark.parametrize(
    ("stage", "option"), [(stage, option) for stage in (Dpo, Orpo, Simpo, Cpo) for option in own_options(stage)]
)
def test_an_option_acts(stage: type, option: str, tokens: Any, trl_loss: Callable[..., float], tmp_path: Path) -> None:
    assert (stage, option) in EVIDENCE, f"nothing shows that {option} of {stage.__name__} acts"
    EVIDENCE[stage, option](tokens, trl_loss, tmp_path)


def mean_loss(objective: Objective, tokens: Any) -> float:
    """What the engine would make of these tokens."""
    provided = {TokenLogProbs(): tokens.scores(tokens.policy), ReferenceLogProbs(): tokens.scores(tokens.reference)}
    sums = objective.sums(tokens.batch, Provided(provided))
    return float(sums.loss) / objective.weight(tokens.batch)


def of(stage: Any, tokens: Any) -> float:
    return mean_loss(stage.objective(), tokens)


def same(found: float, expected: float) -> bool:
    return found == pytest.approx(expected, rel=1e-5)


def means(tokens: Any) -> list[tuple[float, float]]:
    """Mean log-probabilities of the two answers of each pair, token by token."""
    rows = [(row[mask].tolist()) for row, mask in zip(tokens.policy, tokens.mask, strict=True)]
    each = [sum(row) / len(row) for row in rows]
    return list(zip(each[::2], each[1::2], strict=True))


def totals(tokens: Any) -> list[tuple[float, float]]:
    each = [sum(row[mask].tolist()) for row, mask in zip(tokens.policy, tokens.mask, strict=True)]
    return list(zip(each[::2], each[1::2], strict=True))


def mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def log_sigma(x: float) -> float:
    return -math.log1p(math.exp(-x))


@evidence(Dpo, "beta")
def beta_scales_rewards_as_in_trl(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    assert same(of(Dpo(beta=0.7), tokens), trl_loss(tokens, {"sigmoid": 1.0}, beta=0.7))


@evidence(Dpo, "loss")
def losses_are_added_with_their_weights_as_in_trl(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    assert same(of(Dpo(loss="hinge"), tokens), trl_loss(tokens, {"hinge": 1.0}))
    expected = trl_loss(tokens, {"sigmoid": 0.8, "nca_pair": 0.2})
    assert same(of(Dpo(loss={"sigmoid": 0.8, "nca": 0.2}), tokens), expected)


@evidence(Dpo, "label_smoothing")
def smoothing_mixes_in_the_pair_the_other_way_round(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    order = [place ^ 1 for place in range(2 * tokens.pairs)]
    swapped = replace(tokens, policy=tokens.policy[order], reference=tokens.reference[order], mask=tokens.mask[order])
    both = [trl_loss(each, {"sigmoid": 1.0}) for each in (tokens, swapped)]
    assert same(of(Dpo(label_smoothing=0.2), tokens), 0.8 * both[0] + 0.2 * both[1])
    expected = trl_loss(tokens, {"robust": 1.0}, label_smoothing=0.2)
    assert same(of(Dpo(loss="robust", label_smoothing=0.2), tokens), expected)


@evidence(Dpo, "divergence", "divergence_alpha")
def divergences_are_those_of_trl(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    expected = trl_loss(tokens, {"sigmoid": 1.0}, f_divergence_type="js_divergence")
    assert same(of(Dpo(divergence="js"), tokens), expected)
    options = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.8}
    single = replace(tokens, policy=tokens.policy.float(), reference=tokens.reference.float())
    expected = trl_loss(single, {"sigmoid": 1.0}, **options)
    assert same(of(Dpo(divergence="alpha", divergence_alpha=0.2), single), expected)


@evidence(Dpo, "tail_weight")
def tails_count_as_in_trl(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    assert same(of(Dpo(tail_weight=0.3), tokens), trl_loss(tokens, {"sigmoid": 1.0}, ld_alpha=0.3))


@evidence(Dpo, "margin_weight")
def a_margin_asks_for_so_much_more(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    asked = replace(tokens, margins=(2.0, None, None, None, None))
    bare = trl_loss(tokens, {"sigmoid": 1.0})
    assert same(of(Dpo(margin_weight=0.0), asked), bare)
    first = replace(asked, policy=asked.policy[:2], reference=asked.reference[:2], mask=asked.mask[:2], margins=(2.0,))
    logit = -math.log(math.expm1(trl_loss(first, {"sigmoid": 1.0})))
    expected = bare + (-log_sigma(logit - 0.5 * 2.0) + log_sigma(logit)) / tokens.pairs
    assert same(of(Dpo(margin_weight=0.5), asked), expected)


@evidence(Dpo, "sft_weight")
def the_chosen_answer_is_trained_too(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    bare = trl_loss(tokens, {"sigmoid": 1.0})
    assert same(of(Dpo(sft_weight=0.5), tokens), bare + 0.5 * mean(-chosen for chosen, _ in means(tokens)))


@evidence(Dpo, "discopop_temperature")
def the_temperature_is_that_of_trl(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    expected = trl_loss(tokens, {"discopop": 1.0}, args=SimpleNamespace(discopop_tau=0.5))
    assert same(of(Dpo(loss="discopop", discopop_temperature=0.5), tokens), expected)


@evidence(Dpo, "bco_decay")
def the_shift_of_bco_follows_the_rewards_of_the_steps_before(
    tokens: Any, trl_loss: Callable[..., float], folder: Path
) -> None:
    objective = Dpo(loss="bco", bco_decay=0.75).objective()
    assert same(mean_loss(objective, tokens), trl_loss(tokens, {"bco_pair": 1.0}))
    for chosen, rejected in ((2.0, 4.0), (1.0, -1.0)):  # rewards of two pairs: means 1.5 and 0
        objective.observe({"reward_chosen": Sum(chosen, 2.0), "reward_rejected": Sum(rejected, 2.0)})
    shift = 0.25 * 0.75 * 1.5
    ratios = [(p - r).sum().item() for p, r in zip(tokens.policy, tokens.reference, strict=True)]
    rewards = [0.1 * ratio for ratio in ratios]
    expected = mean(
        -log_sigma(w - shift) - log_sigma(shift - v) for w, v in zip(rewards[::2], rewards[1::2], strict=True)
    )
    assert same(mean_loss(objective, tokens), expected)
    resumed = Dpo(loss="bco", bco_decay=0.75).objective()
    resumed.load_state(objective.state())
    assert mean_loss(resumed, tokens) == mean_loss(objective, tokens)


@evidence(Orpo, "beta")
def the_odds_ratio_of_trl_is_added_to_the_likelihood(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    orpo = experimental("orpo", "ORPOTrainer")
    chosen, rejected = (torch.tensor(each) for each in zip(*means(tokens), strict=True))
    odds = orpo.odds_ratio_loss(SimpleNamespace(beta=0.6, accelerator=CPU), chosen, rejected)[0]
    assert same(of(Orpo(beta=0.6), tokens), float(-chosen.mean() - odds.mean()))


@evidence(Simpo, "beta", "gamma", "sft_weight")
def simpo_is_that_of_trl(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    chosen, rejected = (torch.tensor(each) for each in zip(*means(tokens), strict=True))
    expected = cpo_loss(chosen, rejected, loss_type="simpo", beta=1.5, simpo_gamma=0.7)
    assert same(of(Simpo(beta=1.5, gamma=0.7), tokens), expected)
    assert same(of(Simpo(beta=1.5, gamma=0.7, sft_weight=0.2), tokens), expected - 0.2 * float(chosen.mean()))


@evidence(Cpo, "beta", "label_smoothing", "sft_weight")
def cpo_is_that_of_trl(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
    chosen, rejected = (torch.tensor(each) for each in zip(*totals(tokens), strict=True))
    likelihood = mean(-chosen for chosen, _ in means(tokens))
    expected = cpo_loss(chosen, rejected, loss_type="sigmoid", beta=0.4, label_smoothing=0.1)
    assert same(of(Cpo(beta=0.4, label_smoothing=0.1, sft_weight=0.0), tokens), expected)
    assert same(of(Cpo(beta=0.4, label_smoothing=0.1, sft_weight=0.5), tokens), expected + 0.5 * likelihood)


def a_learning_rate_moves_weights_so_far(stage: type) -> Evidence:
    """The first step of AdamW moves each weight by the learning rate."""

    def show(tokens: Any, trl_loss: Callable[..., float], folder: Path) -> None:
        singles = [item.sequences[0] for item in random_items(8)]
        pairs = [Item(pair) for pair in zip(singles[::2], singles[1::2], strict=True)]
        for rate in (1e-2, 1e-4):
            model = tiny_llama()
            before = model.model.norm.weight.detach().clone()
            config = stage(learning_rate=rate, steps=1, schedule={"shape": "constant"}).config
            train(stage().objective(), pairs, bundle(model), config, context(folder / str(rate)))
            moved = (model.model.norm.weight.detach() - before).abs().median()
            assert float(moved) == pytest.approx(rate, rel=0.02)

    return show


for _stage in (Dpo, Orpo, Simpo, Cpo):
    evidence(_stage, "learning_rate")(a_learning_rate_moves_weights_so_far(_stage))

CPU = SimpleNamespace(device=torch.device("cpu"))


def cpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, **options: Any) -> float:
    trainer = SimpleNamespace(**{"alpha": 0.0, "label_smoothing": 0.0, "accelerator": CPU, **options})
    losses: torch.Tensor = experimental("cpo", "CPOTrainer").cpo_loss(trainer, chosen, rejected)[0]
    return float(losses.mean())


def experimental(module: str, name: str) -> Any:
    """A trainer of TRL that warns of changes to come."""
    import importlib
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(f"trl.experimental.{module}"), name)
