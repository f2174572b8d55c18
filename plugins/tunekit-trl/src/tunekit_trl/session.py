"""One stage that TRL trains: everything that is fixed before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from tunekit.errors import DataError, PlanError, Problem
from tunekit.values import ModelBundle, StageContext
from tunekit_train import TrainConfig
from tunekit_train.order import split
from tunekit_train.parallel import Parallel, parallel_of
from tunekit_train.permuting import permutation
from tunekit_train.prompts import Prompts
from tunekit_train.schedules import factor_of
from tunekit_train.surroundings import Surroundings

from .options import GrpoConfig, RlooConfig


@dataclass(frozen=True)
class Session(Surroundings):
    """A stage's options, prompts, model and surroundings, with what follows from them."""

    config: GrpoConfig | RlooConfig
    data: Prompts
    bundle: ModelBundle
    context: StageContext

    @property
    def options(self) -> TrainConfig:
        """The options of the stage."""
        return self.config

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

    def make_scheduler(self, optimizer: Any, steps: int) -> Any:
        """The learning rate over the steps, as plugins want it."""
        factor, hook = factor_of(self.config, steps), "tunekit_train_schedule"
        given = {"total_steps": steps, "context": self.context}
        return LambdaLR(optimizer, self.context.calls.chain(hook, "factor", factor, **given))
