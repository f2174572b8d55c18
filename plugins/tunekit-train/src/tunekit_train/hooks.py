"""The hooks that every stage on this engine publishes, for plugins with parts of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunekit.hooks import hookspec
from tunekit.values import StageContext

from .objective import Metric, Objective


class TrainHooks:
    """The hooks of `tunekit-train`."""

    @hookspec("chain")
    def tunekit_train_schedule(
        self, factor: Callable[[int], float], total_steps: int, context: StageContext
    ) -> Callable[[int], float]:
        """Change how the learning rate moves.

        Kind: chain over `factor`, a pure function from the optimiser steps already taken, from 0, to the share of the
            stage's `learning_rate` that the next step is taken with.
        When: before the first step, and when a stage is resumed. The schedule reduce_lr_on_plateau goes by evaluations:
            a plan that has both is refused.
        Changes: nothing. What is returned may use the `factor` it is given, which is that of `schedule.shape`.
        Returns: a function of the same kind, 0 or above.
        Raises: TunekitError naming the option that does not fit.
        Example: a rate that is high in every second thousand of steps.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_train_objective(self, objective: Objective, context: StageContext) -> Objective:
        """Change what a stage trains for.

        Kind: chain over `objective`.
        When: before the first step, and when a stage is resumed.
        Changes: nothing. What is returned usually holds the `objective` it is given: it adds a term to its sums, and a
            need to its needs.
        Returns: an objective.
        Raises: TunekitError naming the option that does not fit.
        Example: the loss that keeps the experts of a mixture evenly used.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_train_metrics(self, metrics: tuple[Metric, ...], context: StageContext) -> tuple[Metric, ...]:
        """Tell more of every step and every evaluation.

        Kind: chain over `metrics`, `tunekit_train.Metric`s.
        When: before the first step. Each metric is then asked about every micro-batch, without gradients, with what the
            objective was given about it.
        Changes: nothing.
        Returns: the metrics, with those of the plugin added. What they tell goes wherever the objective's metrics go:
            the record, the trackers, `evaluate.metric`.
        Raises: TunekitError naming the option that does not fit.
        Example: how sure the model is of the tokens it is trained on.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_train_callbacks(self, callbacks: tuple[Any, ...], context: StageContext) -> tuple[Any, ...]:
        """Add callbacks to a stage.

        Kind: chain over `callbacks`, `transformers.TrainerCallback`s.
        When: before the first step. They are called after those of the engine, and may ask for an evaluation, a
            checkpoint or the end of the stage through `control`.
        Changes: nothing; the callbacks themselves may change what Trainer gives them.
        Returns: the callbacks, with those of the plugin added. One with a state that has to survive a resume is a
            `transformers.trainer_callback.ExportableState` too.
        Raises: TunekitError naming the option that does not fit.
        Example: stop after an hour.
        """
        raise AssertionError
