"""The losses of `sft` against their formulas, torch and TRL on the same tokens."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tunekit_sft.objective import TokenLoss, dynamic_loss
from tunekit_sft.vocabulary import Vocabulary, VocabularyScores
from tunekit_train import Batch, Provided, TokenLogProbs, TokenScores
from tunekit_train.testing import random_items

BATCH = Batch(tuple(random_items(5)))
WEIGHTS = torch.tensor([weight for each in BATCH.sequences for weight in each.weights if weight], dtype=torch.float64)
PROBS = torch.rand(len(WEIGHTS), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def mean_loss(objective: TokenLoss) -> float:
    """What the engine makes of these tokens."""
    owners = torch.zeros(len(WEIGHTS), dtype=torch.long)
    sums = objective.sums(BATCH, Provided({TokenLogProbs(): TokenScores(PROBS.log(), WEIGHTS, owners)}))
    return float(sums.loss) / objective.weight(BATCH)


def test_cross_entropy_is_the_weighted_mean_of_minus_log_p() -> None:
    pairs = list(zip(WEIGHTS.tolist(), PROBS.tolist(), strict=True))
    expected = sum(-w * math.log(p) for w, p in pairs) / sum(w for w, _ in pairs)
    assert mean_loss(TokenLoss()) == pytest.approx(expected)


def test_dft_is_the_weighted_mean_of_minus_p_log_p() -> None:
    pairs = list(zip(WEIGHTS.tolist(), PROBS.tolist(), strict=True))
    expected = sum(-w * p * math.log(p) for w, p in pairs) / sum(w for w, _ in pairs)
    assert mean_loss(TokenLoss("dft")) == pytest.approx(expected)


def test_dft_is_that_of_trl_on_the_same_tokens() -> None:
    log_probs = PROBS.log().requires_grad_()
    expected = trl_dft(log_probs)
    ones = torch.ones_like(WEIGHTS)
    found = dynamic_loss(log_probs, ones) / len(ones)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, log_probs), torch.autograd.grad(expected, log_probs))


def test_the_gradient_of_dft_is_that_of_minus_p() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(9, (6,)), torch.rand(6, dtype=torch.float64)

    def of(make: Any) -> Tensor:
        (gradient,) = torch.autograd.grad(make(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]), logits)
        return gradient

    torch.testing.assert_close(of(lambda own: dynamic_loss(own, weights)), of(lambda own: -(weights * own.exp()).sum()))


def test_tokens_that_are_certain_or_impossible_have_a_finite_loss() -> None:
    log_probs = torch.tensor([-1e4, 0.0, -1e-30], requires_grad=True)
    loss = dynamic_loss(log_probs, torch.ones(3))
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_smoothed_targets_with_weights_are_those_of_torch(share: float) -> None:
    logits, targets = some_logits()
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=share)
    found = TokenLoss(label_smoothing=share).sums(BATCH, vocabulary(logits, targets)).loss
    torch.testing.assert_close(found, (WEIGHTS * losses).sum())


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_gradients_of_cross_entropy_are_those_of_small_differences(share: float) -> None:
    logits, targets = some_logits()
    objective = TokenLoss(label_smoothing=share, token_accuracy=True)
    assert torch.autograd.gradcheck(
        lambda given: objective.sums(BATCH, vocabulary(given, targets)).loss, logits.requires_grad_()
    )


def test_token_accuracy_counts_each_supervised_token_once() -> None:
    logits, targets = some_logits()
    sums = TokenLoss(token_accuracy=True).sums(BATCH, vocabulary(logits, targets))
    found = sums.metrics["token_accuracy"]
    assert (found.total, found.weight) == (int((logits.argmax(-1) == targets).sum()), len(targets))


@pytest.mark.parametrize("objective", [TokenLoss("dft"), TokenLoss(label_smoothing=0.1)])
def test_perplexity_is_that_of_the_tokens_whatever_the_loss(objective: TokenLoss) -> None:
    logits, targets = some_logits()
    given = vocabulary(logits, targets)
    if objective.loss == "dft":
        own = given[VocabularyScores()].log_probs
        given = Provided({TokenLogProbs(): TokenScores(own, WEIGHTS, torch.zeros_like(targets))})
    total, weight = objective.sums(BATCH, given).metrics["cross_entropy"]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = float((WEIGHTS * losses).sum() / WEIGHTS.sum())
    summary = objective.summary({"loss": 123.0, "cross_entropy": total / weight})
    assert summary["perplexity"] == pytest.approx(math.exp(expected))


def test_a_perplexity_too_large_for_a_float_is_infinite() -> None:
    assert TokenLoss().summary({"loss": 1e4})["perplexity"] == math.inf


def test_nothing_to_learn_has_no_perplexity() -> None:
    assert math.isnan(TokenLoss().summary({})["perplexity"])


def some_logits() -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(1)
    logits = torch.randn(len(WEIGHTS), 5, dtype=torch.float64, generator=dice)
    return logits, torch.randint(5, (len(WEIGHTS),), generator=dice)


def vocabulary(logits: Tensor, targets: Tensor) -> Provided:
    """What `VocabularyScores` would give, by torch's own functions."""
    whole = logits.log_softmax(-1)
    own = whole.gather(1, targets[:, None])[:, 0]
    return Provided({VocabularyScores(): Vocabulary(own, whole.mean(-1), whole.argmax(-1) == targets, WEIGHTS)})


def trl_dft(log_probs: Tensor) -> Tensor:
    """TRL's own `compute_loss` on given log-probabilities, every token supervised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import SFTTrainer

    zeros = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(
        log_probs=log_probs, entropy=zeros, is_top1=zeros.bool(), label_mask=torch.ones_like(log_probs)
    )
    accelerator = SimpleNamespace(parallelism_config=None, gather_for_metrics=lambda each: each, num_processes=1)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        accelerator=accelerator,
        compute_loss_func=None,
        label_smoother=None,
        args=SimpleNamespace(loss_type="dft", average_tokens_across_devices=False),
        _metrics={"eval": {"entropy": [], "mean_token_accuracy": []}},
        _total_train_tokens=0,
    )
    loss: Any = SFTTrainer.compute_loss(trainer, lambda **given: outputs, {"labels": None})
    assert isinstance(loss, Tensor)
    return loss
