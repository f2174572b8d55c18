"""The objective contract: what is needed of the model, and what the loss is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from tunekit.values import Item, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor

    from .forward import Forward
    from .job import Job
    from .layout import Layout

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


class Source:
    """What a need has prepared for a whole stage: nothing, unless it says otherwise."""

    def facts(self) -> Mapping[str, Any]:
        """What the record keeps of it."""
        return {}

    def save(self, folder: Path) -> None:
        """Write into a checkpoint that is being made what `prepare` will need when the stage goes on from it."""

    def close(self) -> None:
        """The last step is done."""


@dataclass(frozen=True)
class Part(Generic[Value]):
    """What a need has provided for some sequences of a batch, and their numbers in it, ascending."""

    value: Value
    sequences: tuple[int, ...]


class Need(ABC, Generic[Value]):
    """Something an objective must know of the model's view of a batch.

    A need carries its own provider, so a third party brings a new kind by subclassing; make it a frozen dataclass. What
    it says in `logits_at` and `hidden_at` is computed in one run of the model for all needs of the objective.

    `joins` says that it can be provided for parts of a batch and put together with `join`; one that cannot is provided
    for the whole batch, even where the objective says that some sequences are `scored_only`. `chunks` says that where
    it announces logits it asks for what is made of them (`Forward.log_probs`, `Forward.reduced`), so that these need
    not be there all at once.
    """

    joins: ClassVar[bool] = False
    chunks: ClassVar[bool] = False

    @abstractmethod
    def provide(self, forward: Forward) -> Value:
        """Work it out for one batch. `forward` runs the model; gradients flow through what is returned."""

    def logits_at(self, layout: Layout) -> Tensor | None:
        """Where `provide` will ask once for logits; None: nowhere."""
        return None

    def hidden_at(self, layout: Layout) -> Tensor | None:
        """Where `provide` will ask once for hidden states; None: nowhere."""
        return None

    def asks(self) -> Mapping[str, Any]:
        """Arguments that the one run for all needs is called with besides: what the model then returns is in
        `forward.output(name)`. For models that know them; see that it is one in `prepare`.
        """
        return {}

    def join(self, parts: Sequence[Part[Value]]) -> Value:
        """Put together what was provided for parts of a batch, for a need that `joins`."""
        raise NotImplementedError(f"{type(self).__name__} says that it joins, and has no join")

    @property
    def source_key(self) -> Hashable:
        """Needs of one key share what the first of them prepares."""
        return self

    def prepare(self, job: Job, checkpoint: Path | None) -> Source:
        """Make ready for a stage, before its first step: the model is as the stage found it.

        `checkpoint` is the one that the stage goes on from. `provide` finds what is returned in `forward.source`.
        """
        return Source()


class Provided:
    """The needs of an objective for one batch, each under the type it was asked with."""

    def __init__(self, values: Mapping[Need[Any], Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, need: Need[Value]) -> Value:
        value: Value = self._values[need]
        return value

    def __contains__(self, need: Need[Any]) -> bool:
        return need in self._values


class Sum(NamedTuple):
    """A metric as a sum and the weight it is a sum over; the mean is total / weight."""

    total: float
    weight: float


@dataclass(frozen=True)
class Sums:
    """What one micro-batch adds: the loss summed, not averaged, and named metrics as sums."""

    loss: Tensor
    metrics: Mapping[str, Sum] = field(default_factory=dict)


class Metric(ABC):
    """Something told of every step and evaluation besides what the objective tells: see `tunekit_train_metrics`."""

    @abstractmethod
    def sums(self, batch: Batch, provided: Provided) -> Mapping[str, Sum]:
        """Named sums over this micro-batch, from what the objective was given: `need in provided` says whether it was.

        Called without gradients, in training and in evaluations alike. The means are told under the names.
        """


class Objective(ABC):
    """What a stage trains for: a pure function from what the model says about a batch to sums.

    The loss of an optimiser step is the sum of its micro-batches' sums over the sum of their weights, and the weights
    are known from the data alone. So k micro-batches, or n processes, take the same step as one big batch, and an
    evaluation is a true mean. Where terms couple the items of a batch that does not hold: set `couples_batch`.

    An objective may have state, a running mean say: `observe` changes it, `sums` reads it, and checkpoints keep it.
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
        """The loss of this batch summed, and its metrics. No randomness, no model, and the state is only read."""

    def scored_only(self, batch: Batch) -> Sequence[bool]:
        """Which sequences the loss has no gradient through, though it needs their values; empty: none.

        They are then run without gradient, where that is cheaper than running them with the others.
        """
        return ()

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """What an evaluation reports, from the means of the loss and of the metrics. Add what follows from them."""
        return dict(means)

    def observe(self, metrics: Mapping[str, Sum]) -> None:  # noqa: B027 - most have no state
        """Take the state's next value from the metrics of an optimiser step, summed over all its micro-batches.

        Called after each step and never in an evaluation. So k micro-batches change the state as one big batch does.
        """

    def state(self) -> dict[str, Any]:
        """What a checkpoint is to keep: tensors, numbers, texts, and lists and mappings of them."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up the state that a checkpoint kept."""
        assert not state, f"{type(self).__name__} keeps a state and does not take it up"
