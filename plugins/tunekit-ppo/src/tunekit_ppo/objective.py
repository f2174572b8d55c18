"""The objective of `ppo`: a pure function of the policy's view of answers that a rollout has valued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunekit.values import Item
from tunekit_train import Batch, Need, Objective, Provided, Sum, Sums, TokenValues

from .losses import divergence, policy_losses, value_losses
from .needs import SampledLogProbs

Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answered(Item):
    """An answer with all that its rollout knows of it, [answer tokens] each: what the policy learns from.

    `log_probs` and `values` are those of the policy that gave the answer. `told` are figures of the whole rollout.
    """

    log_probs: Numbers = field(kw_only=True)
    values: Numbers = field(kw_only=True)
    advantages: Numbers = field(kw_only=True)
    returns: Numbers = field(kw_only=True)
    told: Mapping[str, float] = field(kw_only=True, default_factory=dict)


@dataclass
class ProximalPolicy(Objective):
    """The mean over answer tokens of the clipped policy loss, plus the weighted value loss, less the entropy bonus."""

    clip: float = 0.2
    value_clip: float = 0.2
    value_coefficient: float = 0.1
    entropy_coefficient: float = 0.0
    temperature: float = 1.0

    @property
    def log_probs(self) -> SampledLogProbs:
        """How the policy's log-probabilities are asked for."""
        return SampledLogProbs(self.temperature, self.entropy_coefficient > 0)

    @property
    def needs(self) -> tuple[Need[Any], ...]:
        """Log-probabilities and values, from one run of the model."""
        return (self.log_probs, TokenValues())

    def weight(self, batch: Batch) -> float:
        """Answer tokens."""
        return batch.supervised_tokens

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """The loss summed over answer tokens. How far the policy has moved since the rollout is told beside it."""
        sampled, values = provided[self.log_probs], provided[TokenValues()]
        old, kept, advantages, returns = (
            self._gathered(batch, name, values) for name in ("log_probs", "values", "advantages", "returns")
        )
        policy = policy_losses(sampled.log_probs, old, advantages, self.clip)
        value = value_losses(values, kept, returns, self.value_clip)
        loss = policy + self.value_coefficient * value
        if sampled.entropies is not None:
            loss = loss - self.entropy_coefficient * sampled.entropies
        told = self._told(sampled.log_probs.detach(), old, values.detach() - kept)
        told.update(policy_loss=policy.detach(), value_loss=value.detach())
        totals = torch.stack([each.sum() for each in told.values()]).tolist()
        metrics = {name: Sum(total, len(old)) for name, total in zip(told, totals, strict=True)}
        return Sums(loss.sum(), {**self._of_rollouts(batch), **metrics})

    def _told(self, log_probs: Tensor, old: Tensor, moved: Tensor) -> dict[str, Tensor]:
        """How far the policy, and its values, are from those of the rollout; [tokens] each."""
        ratio = (log_probs - old).exp()
        return {
            "ratio": ratio,
            "clip_fraction": ((ratio - 1).abs() > self.clip).float(),
            "value_clip_fraction": (moved.abs() > self.value_clip).float(),
            "policy_shift": divergence(old, log_probs, "k3"),
        }

    @staticmethod
    def _gathered(batch: Batch, name: str, like: Tensor) -> Tensor:
        parts = [getattr(item, name) for item in batch.items]
        return torch.from_numpy(np.concatenate(parts)).to(like.device, like.dtype)

    @staticmethod
    def _of_rollouts(batch: Batch) -> dict[str, Sum]:
        """The figures of the rollouts that the answers come from."""
        found: dict[str, Sum] = {}
        for item in batch.items:
            assert isinstance(item, Answered), "PPO learns from answers of a rollout"
            for name, value in item.told.items():
                before = found.get(name, Sum(0.0, 0.0))
                found[name] = Sum(before.total + value, before.weight + 1)
        return found
