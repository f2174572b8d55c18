"""What the model says about the two answers of each pair, summed per answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tunekit.values import Item
from tunekit_train import Sum, TokenScores


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of the chosen and the rejected answers, summed over their tokens, and their sizes, [pairs]."""

    chosen: Tensor
    rejected: Tensor
    chosen_size: Tensor
    rejected_size: Tensor

    @classmethod
    def of(cls, scores: TokenScores, pairs: int, tail_weight: float = 1.0) -> Answers:
        """Sum token scores, whose sequences are chosen, rejected, chosen, rejected, ...

        With `tail_weight` below 1 the log-probabilities are those of LD-DPO; the sizes count every token alike.
        """
        sizes = scores.sizes(2 * pairs).view(pairs, 2)
        if tail_weight != 1:
            factors = tail_factors(scores.owners, 2 * pairs, tail_weight)
            scores = replace(scores, weights=scores.weights * factors)
        sums = scores.sums(2 * pairs).view(pairs, 2)
        return cls(sums[:, 0], sums[:, 1], sizes[:, 0], sizes[:, 1])

    @property
    def chosen_mean(self) -> Tensor:
        """Mean log-probability per token of the chosen answers."""
        return self.chosen / self.chosen_size

    @property
    def rejected_mean(self) -> Tensor:
        """The same of the rejected answers."""
        return self.rejected / self.rejected_size


def tail_factors(owners: Tensor, sequences: int, weight: float) -> Tensor:
    """1 for the first l tokens of each answer, l the tokens of the shorter answer of its pair; `weight` for the rest.

    `owners` [supervised] says which sequence a token belongs to, in ascending order; returns fp32 [supervised].

    Length Desensitization in Direct Preference Optimization (LD-DPO), arXiv:2409.06411; `weight` is its alpha.
    """
    counts = torch.bincount(owners, minlength=sequences)
    places = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
    shared = counts.view(-1, 2).min(dim=1).values.repeat_interleave(2)
    return torch.where(places < shared[owners], 1.0, weight)


def margins_of(items: Sequence[Item], like: Tensor) -> Tensor:
    """The margins that the data gives, 0 where it gives none, [pairs]."""
    return like.new_tensor([item.margin or 0.0 for item in items])


def preference_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """What is told of the rewards of two answers, [pairs]. A tie counts as half right, which is what chance gets."""
    margin = chosen - rejected
    accuracy = (margin.sign() + 1) / 2
    return {"reward_chosen": chosen, "reward_rejected": rejected, "margin": margin, "accuracy": accuracy}


def metric_sums(values: dict[str, Tensor], pairs: int) -> dict[str, Sum]:
    """Sums over pairs, read from the device at once."""
    totals = torch.stack([value.detach().float().sum() for value in values.values()]).tolist()
    return {name: Sum(total, pairs) for name, total in zip(values, totals, strict=True)}
