"""What PPO asks of the model besides values: log-probabilities as answers are sampled, perhaps with their entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tunekit_train import Forward, Layout, Need


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

    chunks: ClassVar[bool] = True

    def logits_at(self, layout: Layout) -> Tensor:
        """The supervised positions."""
        return layout.positions

    def provide(self, forward: Forward) -> Sampled:
        """With gradient."""
        layout = forward.layout
        if not self.entropy:
            return Sampled(forward.log_probs(layout.positions, layout.targets, self.temperature))
        return Sampled(*forward.reduced(self._with_entropies, layout.positions, layout.targets))

    def _with_entropies(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(logits / self.temperature, dim=-1, dtype=torch.float32)  # [tokens, vocab]
        return log_probs.gather(1, targets[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)
