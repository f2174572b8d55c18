"""The needs that come with the engine. A third party brings others by subclassing `Need`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cross_entropy import token_log_probs_
from .forward import Forward
from .objective import Need


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of the supervised tokens, [supervised] each, in the order of the batch's sequences.

    `log_probs` are fp32 and carry the gradient; `weights` are the loss weights and `owners` the index of the sequence
    that each token belongs to, for sums per sequence.
    """

    log_probs: Tensor
    weights: Tensor
    owners: Tensor

    def sums(self, count: int) -> Tensor:
        """The weighted log-probability of each of `count` sequences, fp32 [sequences]."""
        return _per_sequence(self.weights * self.log_probs, self.owners, count)

    def sizes(self, count: int) -> Tensor:
        """The summed weights of each of `count` sequences, fp32 [sequences]: their supervised tokens where all weigh 1."""
        return _per_sequence(self.weights, self.owners, count)


@dataclass(frozen=True)
class TokenLogProbs(Need[TokenScores]):
    """The log-probability of every supervised token, with the head run at supervised positions only."""

    def provide(self, forward: Forward) -> TokenScores:
        layout = forward.layout
        logits = forward.logits(layout.positions)
        return TokenScores(token_log_probs_(logits, layout.targets), layout.weights, layout.owners)


def _per_sequence(values: Tensor, owners: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, owners, values)
