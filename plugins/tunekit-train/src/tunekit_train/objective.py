"""The objective contract: what is needed of the model, and what the loss is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from tunekit.values import Item, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor

    from .forward import Forward

Value = TypeVar("Value")


@dataclass(frozen=True)
class Batch:
    """The items of one micro-batch, with their sequences in one list."""

    items: tuple[Item, ...]
    sequences: tuple[TokenSequence, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sequences", tuple(each for item in self.items for each in item.sequences))

    @property
    def tokens(self) -> int:
        """Real tokens in the batch; padding does not count."""
        return sum(item.tokens for item in self.items)

    @property
    def supervised_tokens(self) -> int:
        """Tokens with a loss weight other than zero."""
        return sum(1 for sequence in self.sequences for weight in sequence.weights if weight)


class Need(ABC, Generic[Value]):
    """Something an objective must know of the model's view of a batch.

    A need carries its own provider, so a third party brings a new kind by subclassing; make it a frozen dataclass.
    """

    @abstractmethod
    def provide(self, forward: Forward) -> Value:
        """Work it out for one batch. `forward` runs the model; gradients flow through what is returned."""


class Provided:
    """The needs of an objective for one batch, each under the type it was asked with."""

    def __init__(self, values: Mapping[Need[Any], Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, need: Need[Value]) -> Value:
        value: Value = self._values[need]
        return value


class Sum(NamedTuple):
    """A metric as a sum and the weight it is a sum over; the mean is total / weight."""

    total: float
    weight: float


@dataclass(frozen=True)
class Sums:
    """What one micro-batch adds: the loss summed, not averaged, and named metrics as sums."""

    loss: Tensor
    metrics: Mapping[str, Sum] = field(default_factory=dict)


class Objective(ABC):
    """What a stage trains for: a pure function from what the model says about a batch to sums.

    The loss of an optimiser step is the sum of its micro-batches' sums over the sum of their weights, and the weights
    are known from the data alone. So k micro-batches, or n processes, take the same step as one big batch, and an
    evaluation is a true mean. Where terms couple the items of a batch that does not hold: set `couples_batch`.
    """

    couples_batch: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs(self) -> tuple[Need[Any], ...]:
        """What `sums` must be given."""

    @abstractmethod
    def weight(self, batch: Batch) -> float:
        """The weight of this batch in the mean, from its data alone: supervised tokens, say, or pairs."""

    @abstractmethod
    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """The loss of this batch summed, and its metrics. No state, no randomness, no model."""

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """What an evaluation reports, from the means of the loss and of the metrics. Add what follows from them."""
        return dict(means)
