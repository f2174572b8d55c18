"""Log-probabilities of the supervised tokens of a batch, and what they add up to for each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .objective import Part


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of the supervised tokens, [supervised] each, in the order of the batch's sequences.

    `log_probs` are fp32 and carry the gradient, where there is one; `weights` are the loss weights and `owners` the
    index of the sequence that each token belongs to, for sums per sequence.
    """

    log_probs: Tensor
    weights: Tensor
    owners: Tensor

    def sums(self, count: int) -> Tensor:
        """The weighted log-probability of each of `count` sequences, fp32 [sequences]."""
        return _per_sequence(self.weights * self.log_probs, self.owners, count)

    def sizes(self, count: int) -> Tensor:
        """The summed weights of each of `count` sequences, fp32 [sequences]: its supervised tokens if all weigh 1."""
        return _per_sequence(self.weights, self.owners, count)


def joined_scores(parts: Sequence[Part[TokenScores]]) -> TokenScores:
    """The scores of parts of a batch as those of the whole, in the order of its sequences."""
    names = [torch.tensor(part.sequences, device=part.value.owners.device) for part in parts]
    owners = torch.cat([own[part.value.owners] for own, part in zip(names, parts, strict=True)])
    order = owners.argsort(stable=True)
    log_probs = torch.cat([part.value.log_probs for part in parts])[order]
    weights = torch.cat([part.value.weights for part in parts])[order]
    return TokenScores(log_probs, weights, owners[order])


def _per_sequence(values: Tensor, owners: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, owners, values)
