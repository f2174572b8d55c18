"""What PPO asks of the model besides values: log-probabilities as answers are sampled, perhaps with their entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tunekit_train import Forward, Layout, Need
from tunekit_train.cross_entropy import token_log_probs_


@dataclass(frozen=True)
class Sampled:
    """Of each answer token: its log-probability and, where asked for, the entropy it was drawn with; [tokens], fp32."""

    log_probs: Tensor
    entropies: Tensor | None = None


@dataclass(frozen=True)
class SampledLogProbs(Need[Sampled]):
    """Log-probabilities of the supervised tokens under softmax(logits / temperature), from which they were sampled.

    Shares one run of the model with the values. `entropy` needs all logits in fp32 besides.
    """

    temperature: float = 1.0
    entropy: bool = False

    def logits_at(self, layout: Layout) -> Tensor:
        """The supervised positions."""
        return layout.positions

    def provide(self, forward: Forward) -> Sampled:
        """With gradient."""
        layout = forward.layout
        logits = forward.logits(layout.positions)  # [tokens, vocab]
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if not self.entropy:
            return Sampled(token_log_probs_(logits, layout.targets))
        log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        return Sampled(log_probs.gather(1, layout.targets[:, None])[:, 0], entropies)
