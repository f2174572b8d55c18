"""The objective of `reward`: chosen answers are valued above rejected ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tunekit_train import Batch, Need, Objective, Provided, SequenceValues, Sum, Sums

from .losses import bradley_terry, off_centre


@dataclass
class RewardModel(Objective):
    """The mean over pairs of the Bradley-Terry loss plus `centring` times (r_w + r_l)^2."""

    margin_weight: float = 1.0
    centring: float = 0.0
    label_smoothing: float = 0.0

    needs: ClassVar[tuple[Need[Any], ...]] = (SequenceValues(),)

    def weight(self, batch: Batch) -> float:
        """Pairs."""
        return len(batch.items)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """The loss summed over pairs, with rewards, margin and accuracy; a tie counts as half right."""
        chosen, rejected = provided[SequenceValues()].view(-1, 2).unbind(1)
        asked = self.margin_weight * chosen.new_tensor([item.margin or 0.0 for item in batch.items])
        losses = bradley_terry(chosen, rejected, asked, self.label_smoothing)
        if self.centring:
            losses = losses + self.centring * off_centre(chosen, rejected)
        told = {
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "margin": chosen - rejected,
            "accuracy": ((chosen - rejected).sign() + 1) / 2,
        }
        totals = torch.stack([value.detach().sum() for value in told.values()]).tolist()
        return Sums(losses.sum(), {name: Sum(total, len(chosen)) for name, total in zip(told, totals, strict=True)})
