"""Every option of the stage acts: by TRL's loss on the same answers, or by the trained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.testing.options import own_options
from tunekit_kto import Kto
from tunekit_train import Item, Provided, ReferenceLogProbs, TokenLogProbs, train
from tunekit_train.testing import bundle, context, random_items, tiny_llama

Trl = Callable[..., float]


def loss_of(stage: Kto, answers: Any) -> float:
    """What the engine would make of these answers."""
    objective = stage.objective()
    policy = answers.scores(answers.policy, answers.other_policy)
    reference = answers.scores(answers.reference, answers.other_reference)
    sums = objective.sums(answers.batch, Provided({TokenLogProbs(): policy, ReferenceLogProbs(): reference}))
    return float(sums.loss) / objective.weight(answers.batch)


def same(found: float, expected: float) -> bool:
    return found == pytest.approx(expected, rel=1e-6)


def beta_is_that_of_trl(answers: Any, trl_loss: Trl, folder: Path) -> None:
    for beta in (0.1, 0.6):
        assert same(loss_of(Kto(beta=beta), answers), trl_loss(answers, beta=beta))


def losses_are_those_of_trl(answers: Any, trl_loss: Trl, folder: Path) -> None:
    anchored, zero = (loss_of(Kto(loss=name, beta=0.5), answers) for name in ("kto", "apo_zero_unpaired"))
    assert same(anchored, trl_loss(answers, beta=0.5))
    assert same(zero, trl_loss(answers, beta=0.5, loss_type="apo_zero_unpaired"))
    assert not same(anchored, zero)


def class_weights_are_those_of_trl(answers: Any, trl_loss: Trl, folder: Path) -> None:
    found = loss_of(Kto(desirable_weight=1.3, undesirable_weight=0.4), answers)
    assert same(found, trl_loss(answers, desirable_weight=1.3, undesirable_weight=0.4))
    assert not same(found, trl_loss(answers, desirable_weight=0.4, undesirable_weight=1.3))


def the_first_step_moves_weights_by_the_learning_rate(answers: Any, trl_loss: Trl, folder: Path) -> None:
    items = [Item(item.sequences * 2, label=place % 2 == 0) for place, item in enumerate(random_items(8))]
    for rate in (1e-2, 1e-4):
        model = tiny_llama()
        before = model.model.norm.weight.detach().clone()
        config = Kto(learning_rate=rate, steps=1, schedule={"shape": "constant"}).config
        train(Kto().objective(), items, bundle(model), config, context(folder / str(rate)))
        moved = (model.model.norm.weight.detach() - before).abs().median()
        assert float(moved) == pytest.approx(rate, rel=0.02)


EVIDENCE = {
    "beta": beta_is_that_of_trl,
    "loss": losses_are_those_of_trl,
    "desirable_weight": class_weights_are_those_of_trl,
    "undesirable_weight": class_weights_are_those_of_trl,
    "learning_rate": the_first_step_moves_weights_by_the_learning_rate,
}


@pytest.mark.parametrize("option", own_options(Kto))
def test_an_option_acts(option: str, answers: Any, trl_loss: Trl, tmp_path: Path) -> None:
    assert option in EVIDENCE, f"nothing shows that {option} acts"
    EVIDENCE[option](answers, trl_loss, tmp_path)


def test_no_gradient_goes_through_the_mismatched_answers(answers: Any) -> None:
    answers.policy.requires_grad_()
    answers.other_policy.requires_grad_()
    policy = answers.scores(answers.policy, answers.other_policy)
    reference = answers.scores(answers.reference, answers.other_reference)
    provided = Provided({TokenLogProbs(): policy, ReferenceLogProbs(): reference})
    Kto().objective().sums(answers.batch, provided).loss.backward()
    assert torch.count_nonzero(answers.other_policy.grad) == 0
    assert torch.count_nonzero(answers.policy.grad) == answers.policy.numel()


def test_only_the_loss_with_a_kl_term_couples_the_batch() -> None:
    assert Kto().objective().couples_batch
    assert not Kto(loss="apo_zero_unpaired").objective().couples_batch


def test_a_batch_of_one_class_has_a_loss_and_metrics_of_that_class_only(answers: Any) -> None:
    answers.good = torch.ones(5, dtype=torch.bool)
    policy = answers.scores(answers.policy, answers.other_policy)
    reference = answers.scores(answers.reference, answers.other_reference)
    objective = Kto().objective()
    sums = objective.sums(answers.batch, Provided({TokenLogProbs(): policy, ReferenceLogProbs(): reference}))
    assert torch.isfinite(sums.loss)
    assert sums.metrics["reward_bad"].weight == 0
    rewards = 0.1 * (answers.policy - answers.reference).sum(1)
    assert sums.metrics["reward_good"] == pytest.approx((float(rewards.sum()), 5))
