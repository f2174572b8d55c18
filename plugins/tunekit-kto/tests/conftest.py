"""Log-probabilities of answers made by hand, and TRL's own loss on the very same numbers."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tunekit.values import Item, TokenSequence
from tunekit_train import Batch, TokenScores


@dataclass
class Answers:
    """Log-probabilities of the tokens of answers and of mismatched ones, [answers, 5], and which answers are good."""

    policy: Tensor
    reference: Tensor
    other_policy: Tensor
    other_reference: Tensor
    good: Tensor

    def scores(self, own: Tensor, other: Tensor) -> TokenScores:
        """Each answer, and its mismatched one behind it."""
        both = torch.stack([own, other], 1)  # [answers, 2, tokens]
        owners = torch.arange(2 * len(own))[:, None].expand(-1, own.shape[1]).reshape(-1)
        return TokenScores(both.reshape(-1), torch.ones(both.numel(), dtype=both.dtype), owners)

    @property
    def batch(self) -> Batch:
        sequence = TokenSequence([3] * 7, [0.0] * 2 + [1.0] * 5, 1, "a test")
        return Batch(tuple(Item((sequence, sequence), label=bool(good)) for good in self.good))


@pytest.fixture
def answers() -> Answers:
    """Three good and two bad answers, by a policy that has moved some way."""
    dice = torch.Generator().manual_seed(1)
    reference, other = (-3 * torch.rand(5, 5, generator=dice, dtype=torch.float64) for _ in range(2))
    moved = (0.5 * torch.randn(5, 5, generator=dice, dtype=torch.float64) + 0.3 for _ in range(2))
    good = torch.tensor([True, False, True, True, False])
    return Answers(reference + next(moved), reference, other + next(moved), other, good)


@pytest.fixture
def trl_loss() -> Callable[..., float]:
    """TRL's KTOTrainer on given answers: `trl_loss(answers, **options)`."""
    return _trl_loss


def _trl_loss(answers: Answers, **options: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import KTOTrainer

    count = len(answers.good)
    inputs = {
        "input_ids": torch.zeros(count, 6, dtype=torch.long),
        "attention_mask": torch.ones(count, 6),
        "completion_mask": torch.tensor([[0, 1, 1, 1, 1, 1]] * count),
        "label": answers.good,
        "ref_logps": answers.reference.sum(1),
        "ref_KL_logps": answers.other_reference.sum(1),
    }
    numbers = torch.zeros_like(answers.policy)
    outputs = SimpleNamespace(log_probs=answers.policy, entropy=numbers, mean_logits=numbers)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=_same, gather_for_metrics=_same)
    trainer = {
        "model": SimpleNamespace(training=False),
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "calculate_KL": options.get("loss_type", "kto") == "kto",
        "loss_type": "kto",
        "beta": 0.1,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "_compute_kl_logps": lambda model, batch: answers.other_policy.sum(1),
        "_metrics": {"eval": defaultdict(list)},
        "_total_train_tokens": 0,
        **options,
    }
    return float(KTOTrainer._compute_loss(SimpleNamespace(**trainer), lambda **_: outputs, inputs, False))


def _same(value: Tensor) -> Tensor:
    return value
