"""Sums that become means: what a log entry, or an evaluation, averages over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from tunekit.errors import TunekitError

from .objective import Batch, Metric, Provided, Sums


@dataclass
class Tally:
    """Running sums in Python floats, so that they can be saved with a checkpoint and lose nothing."""

    loss: float = 0.0
    weight: float = 0.0
    tokens: int = 0
    supervised_tokens: int = 0
    computed_tokens: int = 0
    batches: int = 0
    seconds: float = 0.0
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def add(self, batch: Batch, weight: float, sums: Sums, computed: int = 0) -> None:
        """Add one micro-batch, of whose tokens `computed` were run: what sequences share is run once."""
        self.loss += float(sums.loss.detach())
        self.weight += weight
        self.tokens += batch.tokens
        self.supervised_tokens += batch.supervised_tokens
        self.computed_tokens += computed
        self.batches += 1
        for name, value in sums.metrics.items():
            total, over = self.metrics.get(name, [0.0, 0.0])
            self.metrics[name] = [total + float(value.total), over + float(value.weight)]

    def merge(self, other: Tally) -> None:
        """Add another tally to this one."""
        for name in ("loss", "weight", "tokens", "supervised_tokens", "computed_tokens", "batches", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, (total, over) in other.metrics.items():
            before = self.metrics.get(name, [0.0, 0.0])
            self.metrics[name] = [before[0] + total, before[1] + over]

    @property
    def means(self) -> dict[str, float]:
        """The true means of the loss and of each metric."""
        values = {"loss": (self.loss, self.weight), **self.metrics}
        return {name: total / over for name, (total, over) in values.items() if over}

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second of training, evaluation and saving not counted."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def supervised_tokens_per_second(self) -> float:
        """The same of tokens that have a loss."""
        return self.supervised_tokens / self.seconds if self.seconds else 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tally:
        """Take up a tally where a checkpoint left it."""
        return cls(**state)


def measured(metrics: Sequence[Metric], batch: Batch, provided: Provided, sums: Sums) -> Sums:
    """The sums of a micro-batch with those of further metrics. TunekitError where two tell the same name."""
    if not metrics:
        return sums
    told = dict(sums.metrics)
    with torch.no_grad():
        for metric in metrics:
            more = metric.sums(batch, provided)
            if twice := sorted(told.keys() & more.keys()):
                name = type(metric).__name__
                raise TunekitError(f"{name} tells {twice[0]}, which is told already", "call it by another name")
            told.update(more)
    return replace(sums, metrics=told)
