"""The objectives of `kto`, against the policy at the start of the stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tunekit_train import Batch, Need, Objective, Provided, ReferenceLogProbs, Sum, Sums, TokenLogProbs

from .losses import apo_zero_unpaired, kl_estimate, kto


@dataclass
class ZeroAnchored(Objective):
    """The mean over answers of w loss, w the weight of good or of bad answers: `apo_zero_unpaired`."""

    beta: float
    good_weight: float = 1.0
    bad_weight: float = 1.0

    needs: ClassVar[tuple[Need[Any], ...]] = (TokenLogProbs(), ReferenceLogProbs())

    def weight(self, batch: Batch) -> float:
        """Answers, whatever their class weighs: the mean of the paper, and TRL's."""
        return len(batch.items)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """The loss summed over answers, with rewards and log-probabilities of each class, and the accuracy."""
        policy, reference = _per_item(batch, provided[TokenLogProbs()]), _per_item(batch, provided[ReferenceLogProbs()])
        good = torch.tensor([bool(item.label) for item in batch.items], device=policy.device)
        rewards = self.beta * (policy - reference)[:, 0]
        kl = self.kl(policy, reference)
        losses = self.losses(rewards, good, kl)
        weights = torch.where(good, self.good_weight, self.bad_weight)
        right = _half_ties(torch.where(good, rewards - self.beta * kl, self.beta * kl - rewards))
        metrics = {
            "reward_good": _sum(rewards, good),
            "reward_bad": _sum(rewards, ~good),
            "log_prob_good": _sum(policy[:, 0], good),
            "log_prob_bad": _sum(policy[:, 0], ~good),
            "accuracy": _sum(right, torch.ones_like(good)),
        }
        if self.couples_batch:
            metrics["kl"] = Sum(float(kl) * len(batch.items), len(batch.items))
        return Sums((weights * losses).sum(), metrics)

    def kl(self, policy: Tensor, reference: Tensor) -> Tensor:
        """The anchor that rewards are compared with, []: none."""
        return policy.new_zeros(())

    def losses(self, rewards: Tensor, good: Tensor, kl: Tensor) -> Tensor:
        """One loss per answer, [answers]."""
        return apo_zero_unpaired(rewards, good)

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """The margin is the difference of the classes' mean rewards, where both are there."""
        told = dict(means)
        if "reward_good" in told and "reward_bad" in told:
            told["margin"] = told["reward_good"] - told["reward_bad"]
        return told


class KlAnchored(ZeroAnchored):
    """`kto`: the same with the KL term, estimated from the mismatched answers of each micro-batch."""

    couples_batch: ClassVar[bool] = True

    def scored_only(self, batch: Batch) -> tuple[bool, ...]:
        """The mismatched answers: the KL term has no gradient."""
        return (False, True) * len(batch.items)

    def kl(self, policy: Tensor, reference: Tensor) -> Tensor:
        """The second sequence of each item holds the mismatched answer."""
        return kl_estimate(policy[:, 1], reference[:, 1])

    def losses(self, rewards: Tensor, good: Tensor, kl: Tensor) -> Tensor:
        """One loss per answer, [answers]."""
        return kto(rewards, good, self.beta * kl)


def _per_item(batch: Batch, scores: Any) -> Tensor:
    """Summed log-probabilities, [answers, sequences of an item]."""
    sums: Tensor = scores.sums(len(batch.sequences))
    return sums.view(len(batch.items), -1)


def _half_ties(lead: Tensor) -> Tensor:
    """1 where positive, 0 where negative; a tie counts as half right, which is what chance gets."""
    return (lead.sign() + 1) / 2


def _sum(values: Tensor, chosen: Tensor) -> Sum:
    return Sum(float(values.detach()[chosen].sum()), int(chosen.sum()))
