"""What follows from the model, options and context of a stage alone, whoever trains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from tunekit.errors import DivergedError, InterruptedRunError, TunekitError
from tunekit.values import Event, EventKind, ModelBundle, OptimizerSettings, StageContext

from .checkpoints import Checkpoints
from .config import TrainConfig
from .heads import is_head


class Surroundings:
    """A stage on its way: its optimiser, callbacks, checkpoints, events and errors.

    This engine's jobs derive from it, and so do stages that train by another library's trainer.
    """

    bundle: ModelBundle
    context: StageContext

    @property
    def options(self) -> TrainConfig:
        """The options of the stage."""
        raise NotImplementedError

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole stage."""
        raise NotImplementedError

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this stage."""
        return Checkpoints(self.context.folder / "checkpoints", self.options.checkpoint.keep)

    def make_optimizer(self, model: Any, steps: int) -> Any:
        """Cast what trains to its dtype, then ask the plugin that owns optimisers.

        A checkpoint may just have been loaded, and PEFT loads adapters in a dtype of its own choice.
        """
        named = cast_trainable_(model, self.bundle.precision.trainable)
        settings = OptimizerSettings(self.options.learning_rate, self.options.weight_decay, steps)
        return self.context.calls.own(
            "tunekit_optimizer", bundle=self.bundle, named_parameters=named, settings=settings, context=self.context
        )

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
            f"lower {self.context.key}.learning_rate (now {self.options.learning_rate:g}), "
            "or train in a wider dtype (use.precision)",
        )

    def interrupted(self) -> InterruptedRunError:
        """The error for a stage that was asked to stop."""
        newest, folder = self.checkpoints.newest(), self.context.folder
        kept = f"{newest.name.replace('-', ' ')} is saved" if newest else "no checkpoint had been written yet"
        run = next((up for up in folder.parents if (up / "recipe.yaml").exists()), folder.parent)
        return InterruptedRunError(f"{self.context.name} was interrupted; {kept}", f"go on with `tunekit resume {run}`")


def cast_trainable_(model: Any, dtype: str) -> list[tuple[str, Any]]:
    """Cast every trainable parameter to `dtype` in place, and return them with their names."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise TunekitError("no parameter of the model trains", "use an adapter plugin, or none to train all weights")
    for name, parameter in named:
        if is_head(name):
            continue  # it computes in fp32, whatever the adapter trains in
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return named


@contextmanager
def same_trained(model: Any) -> Iterator[None]:
    """Leave what trains as it is now, also where a step breaks off for which a part of it was frozen."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, trains in flags:
            parameter.requires_grad_(trains)
