"""The mathematics of supervised fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunekit_train import Batch, Need, Objective, Provided, Sums, TokenLogProbs


class TokenCrossEntropy(Objective):
    """The weighted mean over supervised tokens of -log p(token | tokens before it).

    With w the loss weight of each token, a step's loss is sum(-w log p) / sum(w), over all its micro-batches at once.
    """

    needs: tuple[Need[Any], ...] = (TokenLogProbs(),)

    def weight(self, batch: Batch) -> float:
        """The sum of the loss weights."""
        return sum(sum(sequence.weights) for sequence in batch.sequences)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """sum(-w log p)."""
        scores = provided[TokenLogProbs()]
        return Sums(-(scores.weights * scores.log_probs).sum())

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity is exp(mean loss); one past what a float holds is infinite."""
        loss = means["loss"]
        return {**means, "perplexity": math.exp(loss) if loss < 709 else math.inf}
