"""One training job: everything the engine needs to know, fixed before the first step."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tunekit.errors import DataError, DivergedError, Problem, TunekitError
from tunekit.values import Event, EventKind, Item, ModelBundle, OptimizerSettings, StageContext

from .checkpoints import Checkpoints
from .config import TrainConfig
from .forward import Strategy
from .items import Items
from .objective import Objective
from .order import BatchOrder, split
from .tally import Tally


@dataclass(frozen=True)
class Job:
    """A stage's objective, items, options and surroundings, with what follows from them."""

    objective: Objective
    items: Items
    bundle: ModelBundle
    config: TrainConfig
    context: StageContext
    strategy: Strategy

    @cached_property
    def _split(self) -> tuple[list[int], list[int]]:
        if len(self.items) < (2 if self.config.evaluate.share else 1):
            where = f"{self.context.key}.data"
            raise DataError([Problem(where, f"{len(self.items)} examples are too few", "give more data")])
        return split(len(self.items), self.config.evaluate.share, self.context.seed)

    @cached_property
    def training(self) -> list[Item]:
        """The items trained on."""
        return [self.items[index] for index in self._split[0]]

    @cached_property
    def held_out(self) -> list[Item]:
        """The items kept for evaluation."""
        return [self.items[index] for index in self._split[1]]

    @cached_property
    def order(self) -> BatchOrder:
        """Which items make up which micro-batch."""
        batch = self.config.batch
        return BatchOrder([item.tokens for item in self.training], batch.rows, self.context.seed, batch.by_length)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the data; the last may hold fewer micro-batches."""
        return math.ceil(len(self.order) / self.config.batch.accumulation)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole stage."""
        return self.config.steps or math.ceil(self.config.epochs * self.steps_per_epoch)

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        schedule = self.config.schedule
        if schedule.warmup_steps is not None:
            return schedule.warmup_steps
        return int(schedule.warmup_ratio * self.total_steps)

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this stage."""
        return Checkpoints(self.context.folder / "checkpoints", self.config.checkpoint.keep)

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

    def make_optimizer(self, model: Any, steps: int) -> Any:
        """Cast what trains to its dtype, then ask the plugin that owns optimisers.

        A checkpoint may just have been loaded, and PEFT loads adapters in a dtype of its own choice.
        """
        named = cast_trainable_(model, self.bundle.precision.trainable)
        settings = OptimizerSettings(self.config.learning_rate, self.config.weight_decay, steps)
        return self.context.calls.own(
            "tunekit_optimizer", bundle=self.bundle, named_parameters=named, settings=settings, context=self.context
        )

    def step_metrics(self, window: Tally, logs: dict[str, float]) -> dict[str, float]:
        """What is told of the steps since the last entry."""
        rates: dict[str, float] = {name: logs[name] for name in ("learning_rate", "grad_norm") if name in logs}
        counts = {"tokens": window.tokens, "supervised_tokens": window.supervised_tokens}
        return {**window.means, **rates, **counts, "tokens_per_second": window.tokens_per_second}

    def tell(self, kind: EventKind, step: int, metrics: dict[str, float]) -> None:
        """Tell all watchers of the run."""
        self.context.emit(Event(kind, self.context.name, step, self.total_steps, metrics))

    def diverged(self, what: str, step: int) -> DivergedError:
        """The error for a loss or gradient that is no finite number."""
        newest = self.checkpoints.newest()
        kept = f"the last good checkpoint is {newest}" if newest else "no checkpoint was written before"
        return DivergedError(
            f"{what} of {self.context.name} is not a finite number at step {step}; {kept}",
            f"lower {self.context.key}.learning_rate (now {self.config.learning_rate:g}), "
            "or train in a wider dtype (use.precision)",
        )


def cast_trainable_(model: Any, dtype: str) -> list[tuple[str, Any]]:
    """Cast every trainable parameter to `dtype` in place, and return them with their names."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise TunekitError("no parameter of the model trains", "use an adapter plugin, or none to train all weights")
    for _, parameter in named:
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return named
