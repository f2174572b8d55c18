"""The needs that come with the engine. A third party brings others by subclassing `Need`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .forward import Forward
from .heads import NAME as VALUE_HEAD
from .heads import HeadStart, TrainedHead
from .layout import Layout
from .objective import Need, Part
from .reference import Reference, ReferenceMode, prepare_reference
from .scores import TokenScores, joined_scores

if TYPE_CHECKING:
    from .job import Job


@dataclass(frozen=True)
class TokenLogProbs(Need[TokenScores]):
    """The log-probability of every supervised token, with the head run at supervised positions only.

    Costs one run of the model, which it shares with the values, and the head at the supervised positions.
    """

    joins: ClassVar[bool] = True
    chunks: ClassVar[bool] = True

    def logits_at(self, layout: Layout) -> Tensor:
        """The supervised positions."""
        return layout.positions

    def provide(self, forward: Forward) -> TokenScores:
        """fp32, with gradient."""
        layout = forward.layout
        log_probs = forward.log_probs(layout.positions, layout.targets)
        return TokenScores(log_probs, layout.weights, layout.owners)

    def join(self, parts: Sequence[Part[TokenScores]]) -> TokenScores:
        """In the order of the whole batch's sequences."""
        return joined_scores(parts)


@dataclass(frozen=True)
class ReferenceLogProbs(Need[TokenScores]):
    """The log-probabilities of the supervised tokens in the policy as it was at the start of the stage, dropout off.

    `mode` is `auto`, `switch_off` (run the model without its adapter: one more run without gradient for each batch),
    `copied` (the same with a frozen copy of the adapter in its place) or `cached` (one run without gradient over all
    items before the first step, then read from a file). `auto` takes the cheaper of the first and the last where both
    are right, never switches off an adapter that has learnt something, and copies it where data is streamed.
    """

    mode: ReferenceMode = "auto"

    joins: ClassVar[bool] = True

    def join(self, parts: Sequence[Part[TokenScores]]) -> TokenScores:
        """In the order of the whole batch's sequences.

        Laid out as the policy was, the reference rounds as it did, and their difference is that of the weights alone.
        """
        return joined_scores(parts)

    def prepare(self, job: Job, checkpoint: Path | None) -> Reference:
        """Choose, and fill the file where one is used."""
        return prepare_reference(self.mode, job, checkpoint)

    def provide(self, forward: Forward) -> TokenScores:
        """fp32, without gradient."""
        source = forward.source(self)
        assert isinstance(source, Reference)
        return source.scores(forward)


@dataclass(frozen=True)
class _Values(Need[Tensor]):
    """The value head on some hidden states; a subclass says on which, in `hidden_at`."""

    start: HeadStart = "zeros"
    frozen: bool = False

    @property
    def source_key(self) -> Hashable:
        """A model has one value head."""
        return VALUE_HEAD

    def prepare(self, job: Job, checkpoint: Path | None) -> TrainedHead:
        """Give the model its head."""
        return TrainedHead.prepare(job, checkpoint, self.start, self.frozen)

    @abstractmethod
    def hidden_at(self, layout: Layout) -> Tensor:
        """The positions whose hidden states have a value."""

    def provide(self, forward: Forward) -> Tensor:
        """fp32, with gradient."""
        source = forward.source(self)
        assert isinstance(source, TrainedHead)
        hidden = forward.hidden(self.hidden_at(forward.layout))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            values: Tensor = source.head(hidden)
        return values


@dataclass(frozen=True)
class SequenceValues(_Values):
    """The value of each sequence, fp32 [sequences]: the value head on the hidden state of its last token.

    The head is trained, unless `frozen`, and saved with the adapter. A model that has none yet gets one that begins
    with `start`. Costs one run of the model, which it shares with the log-probabilities, and no logits.
    """

    joins: ClassVar[bool] = True

    def hidden_at(self, layout: Layout) -> Tensor:
        """The last tokens."""
        return layout.ends

    def join(self, parts: Sequence[Part[Tensor]]) -> Tensor:
        """In the order of the whole batch's sequences."""
        numbers = torch.tensor([number for part in parts for number in part.sequences])
        values = torch.cat([part.value for part in parts])
        return values[numbers.argsort().to(values.device)]


@dataclass(frozen=True)
class TokenValues(_Values):
    """The value at every supervised position, fp32 [supervised]: of what stands before each supervised token.

    Otherwise as `SequenceValues`. Both use the one head that a model has: give them the same options.
    """

    def hidden_at(self, layout: Layout) -> Tensor:
        """The supervised positions."""
        return layout.positions
