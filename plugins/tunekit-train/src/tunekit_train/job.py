"""One training job: everything the engine needs to know, fixed before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from tunekit.errors import DataError, PlanError, Problem
from tunekit.values import ModelBundle, StageContext

from .budget import Sizes, TokenOrder, fill
from .checks import option_problems, streaming_problems, uneven, unpacked
from .config import TrainConfig
from .feeding import Room
from .fitting import Fitting
from .forward import Strategy, base_model
from .items import IndexedItems, Indices, Items, Selection
from .objective import Batch, Metric, Objective
from .order import BatchOrder, split
from .packing import Bins, pack
from .parallel import Parallel, parallel_of
from .producing import ProducedItems
from .schedules import Span, factor_of, length_problems
from .streaming import StreamedItems
from .surroundings import Surroundings
from .tally import Tally
from .tricks import trick_problems
from .work import matrix_rate


@dataclass(frozen=True)
class Job(Surroundings):
    """A stage's objective, items, options and surroundings, with what follows from them."""

    objective: Objective
    items: IndexedItems | StreamedItems | ProducedItems
    bundle: ModelBundle
    config: TrainConfig
    context: StageContext
    strategy: Strategy
    fitting: Fitting = field(default_factory=Fitting)

    @property
    def options(self) -> TrainConfig:
        """The options of the stage."""
        return self.config

    @property
    def stream(self) -> StreamedItems | None:
        """The items, where they are streamed: they have no number, no order and no epochs then."""
        return self.items if isinstance(self.items, StreamedItems) else None

    @property
    def produced(self) -> ProducedItems | None:
        """The items, where the stage makes them while it trains: they have no number, no order and no epochs then."""
        return self.items if isinstance(self.items, ProducedItems) else None

    @property
    def border(self) -> int:
        """Optimiser steps between two places where a checkpoint can be written."""
        return 1 if self.produced is None else self.produced.steps_between

    @property
    def evaluated(self) -> int:
        """How many items an evaluation looks at."""
        return len(self.held_out) if self.produced is None else self.produced.held_out

    @cached_property
    def parallel(self) -> Parallel:
        """The processes that train it."""
        return parallel_of(self.context)

    def refuse(self) -> None:
        """Raise PlanError for options that the plan could not yet see are impossible."""
        packing, key, found = self.config.batch.packing, self.context.key, []
        found += list(uneven(self.config, self.parallel.count, key))
        found += list(self._not_in_parts())
        found += list(self._evaluated_otherwise())
        if self.produced is not None and self.parallel.count > 1:
            what = f"learns from what its own model says, and {self.parallel.count} processes would each ask another"
            found.append(Problem(key, what, "train it in one process"))
        if packing != "none" and self.strategy.name == "padded":
            found.append(unpacked(f"{key}.batch.packing", packing, self.strategy.reason))
        if self.stream is not None:
            found += streaming_problems(self.config, key)
        found += option_problems(self.config, key)
        if not found and self.config.steps is None:
            found += length_problems(self.config, self.total_steps, key)
        if found:
            raise PlanError(found)

    def _evaluated_otherwise(self) -> Iterator[Problem]:
        """A loss that compares what the model says in training and in evaluation, where the two attend otherwise."""
        from .attentions import attention_of
        from .needs import ReferenceLogProbs

        why = attention_of(base_model(self.bundle.model)).traits.evaluation
        compared = self.produced is not None or any(
            isinstance(each, ReferenceLogProbs) for each in self.objective.needs
        )
        if why is not None and compared:
            what = f"compares what the model says in training with what it says in evaluation, and {why}"
            yield Problem(self.context.key, what, "train this stage with an ordinary attention")

    def _not_in_parts(self) -> Iterator[Problem]:
        """What cannot be done where no process has the whole model."""
        way, own = self.parallel.name, self.bundle.save is not None and self.bundle.adapters is None
        yield from trick_problems(self.config, self.context.key, way, self.parallel.obstacle)
        if own and (why := self.parallel.obstacle("own_save")) is not None:
            remedy = "train all weights or a LoRA adapter, or use `ddp`"
            yield Problem("use", f"does not hold under {way}: {why}", remedy)

    @cached_property
    def _at_hand(self) -> IndexedItems:
        return self.items if isinstance(self.items, IndexedItems) else Items(())

    @cached_property
    def _split(self) -> tuple[Indices, Indices]:
        count, share = len(self._at_hand), self.config.evaluate.share
        if count < (2 if share else 1) and isinstance(self.items, IndexedItems):
            where = f"{self.context.key}.data"
            raise DataError([Problem(where, f"{count} examples are too few", "give more data")])
        return split(count, share, self.context.seed)

    @cached_property
    def training(self) -> IndexedItems:
        """The items trained on."""
        return Selection(self._at_hand, self._split[0])

    @cached_property
    def held_out(self) -> IndexedItems:
        """The items kept for evaluation."""
        return Selection(self._at_hand, self._split[1])

    @property
    def held_out_numbers(self) -> tuple[int, ...]:
        """The numbers of the items kept for evaluation, in the order of the data; none of a stream."""
        if self.produced is not None:
            return self.produced.held_out_numbers
        return tuple(self._split[1].tolist()) if isinstance(self.items, IndexedItems) else ()

    @cached_property
    def bins(self) -> Bins:
        """Which items trained on lie together."""
        batch, lengths = self.config.batch, self.training.lengths
        return pack(lengths, batch.packing, batch.max_length, self.context.seed, self.items.mixing.shuffle)

    @cached_property
    def order(self) -> BatchOrder:
        """Which items make up which micro-batch."""
        batch, shuffle = self.config.batch, self.items.mixing.shuffle
        lengths, seed = self.training.lengths, self.context.seed
        if batch.tokens:
            return TokenOrder(self._sizes(self.training), batch.tokens, seed, batch.by_length, shuffle)
        return BatchOrder(lengths, batch.rows, seed, batch.by_length, shuffle, self.bins)

    @cached_property
    def evaluation_order(self) -> BatchOrder:
        """The held-out items in their own order, packed as those trained on are."""
        batch, lengths = self.config.batch, self.held_out.lengths
        if batch.tokens:
            return TokenOrder(self._sizes(self.held_out), batch.tokens, self.context.seed, shuffle=False)
        bins = pack(lengths, batch.packing, batch.max_length, self.context.seed, shuffle=False)
        return BatchOrder(lengths, batch.rows, self.context.seed, shuffle=False, bins=bins)

    def in_turn(self, items: IndexedItems, chosen: Indices) -> Iterator[Batch]:
        """These of the items one after the other, as many at a time as a micro-batch holds."""
        batch, known = self.config.batch, Selection(items, chosen)
        borders = np.append(np.arange(0, len(known), batch.rows), len(known))
        if batch.tokens:
            borders = fill(self._sizes(known), np.arange(len(known)), batch.tokens)
        for start, end in zip(borders.tolist(), borders[1:].tolist(), strict=False):
            yield Batch(tuple(known[start:end]))

    def _sizes(self, items: IndexedItems) -> Sizes:
        return Sizes.of(items, padded=self.strategy.name == "padded")

    @property
    def bin_size(self) -> int:
        """Tokens of a bin; 0 where each item has one of its own."""
        batch = self.config.batch
        return 0 if batch.packing == "none" else batch.max_length

    @property
    def room(self) -> Room:
        """What a micro-batch of a stream holds."""
        batch = self.config.batch
        if batch.tokens:
            return Room(1, batch.tokens, padded=self.strategy.name == "padded")
        return Room(batch.rows, self.bin_size)

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimiser steps in one pass over the data; the last may hold fewer micro-batches. None where nobody knows."""
        known = isinstance(self.items, IndexedItems)
        return math.ceil(len(self.order) / self.config.batch.accumulation) if known else None

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole stage."""
        if self.config.steps is not None:
            return self.config.steps
        if self.produced is not None:
            return self.produced.total_steps
        assert self.steps_per_epoch is not None, "a stream is refused where steps is not set"
        return math.ceil(self.config.epochs * self.steps_per_epoch)

    @property
    def evaluate_every(self) -> int:
        """Optimiser steps between evaluations."""
        evaluate = self.config.evaluate
        if evaluate.every_ratio is not None:
            return max(1, round(evaluate.every_ratio * self.total_steps))
        return evaluate.every or self.steps_per_epoch or self.total_steps

    @property
    def needs_scaler(self) -> bool:
        """fp16 products underflow without a loss scaler."""
        precision = self.bundle.precision
        return precision.compute == "float16" and precision.autocast and precision.device != "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in the policy's compute dtype."""
        precision = self.bundle.precision
        if not precision.autocast:
            return nullcontext()
        return torch.autocast(precision.device, dtype=getattr(torch, precision.compute))

    def make_scheduler(self, optimizer: Any, steps: int) -> Any:
        """The learning rate over the steps; the plateau's goes by evaluations."""
        schedule, lowest = self.config.schedule, Span.of(self.config, steps).lowest
        if schedule.shape != "reduce_lr_on_plateau":
            factor, hook = factor_of(self.config, steps), "tunekit_train_schedule"
            given = {"total_steps": steps, "context": self.context}
            return LambdaLR(optimizer, self.context.calls.chain(hook, "factor", factor, **given))
        return ReduceLROnPlateau(
            optimizer,
            mode="max" if self.config.evaluate.higher_is_better else "min",
            factor=schedule.plateau_factor,
            patience=schedule.plateau_patience,
            threshold=schedule.plateau_threshold,
            cooldown=schedule.plateau_cooldown,
            min_lr=lowest * self.config.learning_rate,
        )

    def metrics(self) -> tuple[Metric, ...]:
        """What plugins tell besides the objective."""
        found: tuple[Metric, ...] = self.context.calls.chain(
            "tunekit_train_metrics", "metrics", (), context=self.context
        )
        return found

    def weight(self, batch: Batch) -> float:
        """The batch's weight in the mean, a plain number even where loss weights are arrays: checkpoints hold it."""
        return float(self.objective.weight(batch))

    def step_metrics(self, window: Tally, logs: dict[str, float]) -> dict[str, float]:
        """What is told of the steps since the last entry."""
        rates: dict[str, float] = {name: logs[name] for name in ("learning_rate", "grad_norm") if name in logs}
        counts = {"tokens": window.tokens, "supervised_tokens": window.supervised_tokens}
        speeds = {name: getattr(window, name) for name in ("tokens_per_second", "supervised_tokens_per_second")}
        return {**window.means, **rates, **counts, **speeds}

    def matrix_rate(self) -> float:
        """What this machine can multiply, in the dtype of this job's products."""
        precision = self.bundle.precision
        return matrix_rate(precision.device, getattr(torch, precision.compute))
