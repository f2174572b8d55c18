"""One stage that TRL trains: everything that is fixed before the first step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from tunekit.errors import DataError, DivergedError, InterruptedRunError, PlanError, Problem, TunekitError
from tunekit.values import Event, EventKind, ModelBundle, OptimizerSettings, StageContext
from tunekit_train.checkpoints import Checkpoints
from tunekit_train.job import cast_trainable_
from tunekit_train.order import split
from tunekit_train.parallel import Parallel, parallel_of
from tunekit_train.permuting import permutation
from tunekit_train.prompts import Prompts
from tunekit_train.schedules import factor_of

from .options import GrpoConfig, RlooConfig


@dataclass(frozen=True)
class Session:
    """A stage's options, prompts, model and surroundings, with what follows from them."""

    config: GrpoConfig | RlooConfig
    data: Prompts
    bundle: ModelBundle
    context: StageContext

    @cached_property
    def parallel(self) -> Parallel:
        """The processes that train it: one."""
        return parallel_of(self.context)

    def refuse(self) -> None:
        """Raise PlanError where several processes were asked for: each would go through all prompts alone."""
        if self.parallel.count > 1:
            what = f"is trained by TRL in one process, and {self.parallel.count} were asked for"
            raise PlanError([Problem(self.context.key, what, "train it in a run of its own, in one process")])

    @cached_property
    def _split(self) -> tuple[list[int], list[int]]:
        count, share = len(self.data), self.config.evaluate.share
        if count < (2 if share else 1):
            raise DataError([Problem(f"{self.context.key}.data", f"{count} prompts are too few", "give more data")])
        trained, held_out = split(count, share, self.context.seed)
        return trained.tolist(), held_out.tolist()

    @property
    def held_out(self) -> list[int]:
        """The prompts kept for evaluation, by their numbers."""
        return self._split[1]

    @property
    def group(self) -> int:
        """Prompts that are answered at once."""
        return self.config.batch.rows * self.config.micro_batches // self.config.num_generations

    @property
    def period(self) -> int:
        """Optimiser steps from one border to the next where a step ends and new answers are generated."""
        return math.lcm(self.config.uses, self.config.batch.accumulation) // self.config.batch.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in about one pass over the prompts trained on."""
        generations = len(self._split[0]) / self.group
        return max(1, round(generations * self.config.uses / self.config.batch.accumulation))

    @cached_property
    def total_steps(self) -> int:
        """Optimiser steps of the whole stage: an even number of periods unless `steps` says otherwise."""
        if self.config.steps is not None:
            return self.config.steps
        prompts = math.ceil(self.config.epochs * len(self._split[0]))
        steps = math.ceil(prompts / self.group) * self.config.uses / self.config.batch.accumulation
        return math.ceil(steps / self.period) * self.period

    @cached_property
    def order(self) -> list[int]:
        """The prompts in the order they are answered, epoch after epoch without a gap."""
        generations = math.ceil(self.total_steps * self.config.batch.accumulation / self.config.uses)
        needed, trained, epoch = generations * self.group, self._split[0], 0
        order: list[int] = []
        while len(order) < needed:
            turns = range(len(trained))
            if self.data.mixing.shuffle:
                turns = permutation(len(trained), f"{self.context.seed} prompts {epoch}").tolist()
            order += [trained[turn] for turn in turns]
            epoch += 1
        return order[:needed]

    @property
    def evaluate_every(self) -> int:
        """Optimiser steps between evaluations."""
        evaluate = self.config.evaluate
        if evaluate.every_ratio is not None:
            return max(1, round(evaluate.every_ratio * self.total_steps))
        return evaluate.every or self.steps_per_epoch

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this stage."""
        return Checkpoints(self.context.folder / "checkpoints", self.config.checkpoint.keep)

    def make_optimizer(self, model: Any, steps: int) -> Any:
        """Ask the plugin that owns optimisers, for what trains, in its dtype."""
        named = cast_trainable_(model, self.bundle.precision.trainable)
        settings = OptimizerSettings(self.config.learning_rate, self.config.weight_decay, steps)
        return self.context.calls.own(
            "tunekit_optimizer", bundle=self.bundle, named_parameters=named, settings=settings, context=self.context
        )

    def make_scheduler(self, optimizer: Any, steps: int) -> Any:
        """The learning rate over the steps, as plugins want it."""
        factor, hook = factor_of(self.config, steps), "tunekit_train_schedule"
        given = {"total_steps": steps, "context": self.context}
        return LambdaLR(optimizer, self.context.calls.chain(hook, "factor", factor, **given))

    def callbacks(self) -> tuple[TrainerCallback, ...]:
        """What plugins add to Trainer. TunekitError for anything but a callback of transformers."""
        hook = "tunekit_train_callbacks"
        found: tuple[Any, ...] = self.context.calls.chain(hook, "callbacks", (), context=self.context)
        for each in found:
            if not isinstance(each, TrainerCallback):
                what = f"{hook} returned a {type(each).__name__}"
                raise TunekitError(what, "return objects whose class derives from transformers.TrainerCallback")
        return found

    def tell(self, kind: EventKind, step: int, metrics: Mapping[str, float]) -> None:
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

    def interrupted(self) -> InterruptedRunError:
        """The error for a stage that was asked to stop."""
        newest = self.checkpoints.newest()
        kept = f"{newest.name.replace('-', ' ')} is saved" if newest else "no checkpoint had been written yet"
        run = next((up for up in self.context.folder.parents if (up / "recipe.yaml").exists()), self.context.folder)
        return InterruptedRunError(f"{self.context.name} was interrupted; {kept}", f"go on with `tunekit resume {run}`")
