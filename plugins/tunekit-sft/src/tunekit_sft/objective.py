"""The mathematics of supervised fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tunekit_train import Batch, Need, Objective, Provided, Sum, Sums, TokenLogProbs

from .options import LossName
from .vocabulary import VocabularyScores


@dataclass(frozen=True)
class TokenLoss(Objective):
    """The weighted mean of a loss over the supervised tokens.

    With w the loss weight of a token and p its probability after the tokens before it, a step's loss is
    sum(w l) / sum(w), over all its micro-batches at once. With e for `label_smoothing` and V tokens in the vocabulary,

    - `cross_entropy`: l = -(1 - e) log p - e / V sum_v log p_v, the smoothing of Rethinking the Inception Architecture
      for Computer Vision, arXiv:1512.00567;
    - `dft`: l = -sg(p) log p, where no gradient flows through sg: Dynamic Fine-Tuning, arXiv:2508.05629. Its gradient
      is that of -p, and thus small where the model holds the token for unlikely.

    Where l is not -log p, the mean of that is told as `cross_entropy`, and perplexity follows from it.
    """

    loss: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    token_accuracy: bool = False

    @property
    def needs(self) -> tuple[Need[Any], ...]:
        """Log-probabilities of the supervised tokens; with those of the vocabulary where an option asks for them."""
        return (VocabularyScores() if self.label_smoothing or self.token_accuracy else TokenLogProbs(),)

    def weight(self, batch: Batch) -> float:
        """The sum of the loss weights."""
        return sum(sum(sequence.weights) for sequence in batch.sequences)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """sum(w l)."""
        (need,) = self.needs
        scores = provided[need]
        weights, log_probs = scores.weights, scores.log_probs
        plain = -(weights * log_probs).sum()
        metrics: dict[str, Sum] = {}
        if self.token_accuracy:
            metrics["token_accuracy"] = Sum(float(scores.likeliest.sum()), len(weights))
        if self.loss == "cross_entropy" and not self.label_smoothing:
            return Sums(plain, metrics)
        metrics["cross_entropy"] = Sum(float(plain.detach()), float(weights.sum()))
        if self.loss == "dft":
            return Sums(dynamic_loss(log_probs, weights), metrics)
        even = -(weights * scores.means).sum()
        return Sums((1 - self.label_smoothing) * plain + self.label_smoothing * even, metrics)

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity is exp(mean -log p); one past what a float holds is infinite."""
        mean = means.get("cross_entropy", means.get("loss", math.nan))
        return {**means, "perplexity": math.inf if mean >= 709 else math.exp(mean)}


def dynamic_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """sum(-w sg(p) log p) over tokens, from log p and w, [tokens] each."""
    return -(weights * log_probs.detach().exp() * log_probs).sum()
