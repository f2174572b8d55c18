"""The objective of `dpo`: a weighted sum of its losses, against the policy at the start of the stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from tunekit_train import Batch, Need, Objective, Provided, ReferenceLogProbs, Sum, Sums, TokenLogProbs

from .comparing import Compared, Settings, pair_losses
from .names import LossName
from .pairs import Answers, margins_of, metric_sums, preference_metrics


@dataclass
class Preference(Objective):
    """The mean over pairs of sum_i w_i loss_i, plus sft_weight times the mean -log p of the chosen answer's tokens.

    The last is the NLL term of Iterative Reasoning Preference Optimization, arXiv:2404.19733, and of MPO,
    arXiv:2411.10442: each answer's mean counts alike, where TRL takes the mean over the tokens of a batch.

    `bco` has state: `shift`, the mean of the rewards of both answers over the steps before, each of which counts
    `shift_decay` times what the one after it does. It starts at 0, the reward of a policy that is its reference.
    """

    weights: Mapping[LossName, float]
    settings: Settings = field(default_factory=Settings)
    margin_weight: float = 1.0
    tail_weight: float = 1.0
    sft_weight: float = 0.0
    shift_decay: float = 0.99
    shift: float = 0.0

    needs: ClassVar[tuple[Need[Any], ...]] = (TokenLogProbs(), ReferenceLogProbs())

    def weight(self, batch: Batch) -> float:
        """Pairs."""
        return len(batch.items)

    def compare(self, batch: Batch, provided: Provided) -> Compared:
        """Policy and reference side by side."""
        count = len(batch.items)
        policy = Answers.of(provided[TokenLogProbs()], count, self.tail_weight)
        reference = Answers.of(provided[ReferenceLogProbs()], count, self.tail_weight)
        margin = self.margin_weight * margins_of(batch.items, policy.chosen)
        return Compared(policy, reference, margin, self.settings)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """The loss summed over pairs, with rewards, margin, accuracy and log-probabilities."""
        pairs, count = self.compare(batch, provided), len(batch.items)
        terms = {f"{name}_loss": pair_losses(name, pairs, self.shift) for name in self.weights}
        loss = torch.stack([weight * term for weight, term in zip(self.weights.values(), terms.values(), strict=True)])
        loss = loss.sum(0)  # [pairs]
        if self.sft_weight:
            terms["sft_loss"] = -Answers.of(provided[TokenLogProbs()], count).chosen_mean
            loss = loss + self.sft_weight * terms["sft_loss"]
        metrics = {
            **preference_metrics(pairs.chosen_reward, pairs.rejected_reward),
            "log_prob_chosen": pairs.policy.chosen,
            "log_prob_rejected": pairs.policy.rejected,
            **(terms if len(terms) > 1 else {}),
        }
        return Sums(loss.sum(), metric_sums(metrics, count))

    def observe(self, metrics: Mapping[str, Sum]) -> None:
        """Take the mean reward of a step into the shift of `bco`."""
        if "bco" in self.weights:
            chosen, rejected = metrics["reward_chosen"], metrics["reward_rejected"]
            mean = (chosen.total + rejected.total) / (chosen.weight + rejected.weight)
            self.shift += (1 - self.shift_decay) * (mean - self.shift)

    def state(self) -> dict[str, Any]:
        """The shift."""
        return {"shift": self.shift}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the shift that was kept."""
        self.shift = float(state["shift"])


class CoupledPreference(Preference):
    """The same with losses whose terms depend on the other pairs of a micro-batch: `aot` and `aot_unpaired`."""

    couples_batch: ClassVar[bool] = True
