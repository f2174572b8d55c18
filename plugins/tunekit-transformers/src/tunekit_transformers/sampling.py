"""How the next token is chosen: repetition penalty, temperature, nucleus, and a random number of each row's own."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

from tunekit.values import GenerationSettings

if TYPE_CHECKING:
    from torch import Tensor


def row_generator(seed: int, row: int) -> torch.Generator:
    """Make the source of random numbers of one row; equal prompts in one call still get different answers."""
    digest = hashlib.sha256(f"{seed} {row}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Choose(LogitsProcessor):
    """Leave one token per row with a finite score, so that a greedy loop picks it.

    Sampling here rather than in `generate` keeps the global random state untouched and gives a row the same numbers
    whatever batch it is in. `real` tells prompt tokens from padding, bool (batch, prompt seq): `generate`'s own
    repetition penalty would punish the padding token, which is often the end token.
    """

    def __init__(self, settings: GenerationSettings, rows: list[int], real: Tensor) -> None:
        self.settings, self.real = settings, real
        self.generators = [row_generator(settings.seed, row) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores are float32 (batch, vocab), ids int64 (batch, seq)."""
        if self.settings.repetition_penalty != 1.0:
            scores = self._penalise(input_ids, scores)
        if self.settings.temperature == 0.0:
            return scores
        chosen = self._sample(scores)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    def _penalise(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Divide positive and multiply negative scores of tokens seen, as in CTRL (arXiv 1909.05858)."""
        width = self.real.shape[1]
        last_real = input_ids[:, width - 1 : width]
        seen = torch.cat([torch.where(self.real, input_ids[:, :width], last_real), input_ids[:, width:]], dim=1)
        values = scores.gather(1, seen)
        penalty = self.settings.repetition_penalty
        return scores.scatter(1, seen, torch.where(values < 0, values * penalty, values / penalty))

    def _sample(self, scores: Tensor) -> Tensor:
        """Draw from the nucleus (arXiv 1904.09751) by inverting its distribution function; int64 (batch, 1)."""
        probabilities = torch.softmax(scores / self.settings.temperature, dim=-1)
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        nucleus = torch.where(before < self.settings.top_p, ordered, 0.0)
        cumulative = nucleus.cumsum(dim=-1)
        draws = torch.stack([torch.rand(1, generator=generator) for generator in self.generators])
        target = draws.to(cumulative) * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, target, right=True)
        last = (nucleus > 0).sum(dim=-1, keepdim=True) - 1
        return order.gather(1, torch.minimum(index, last))
