"""Callbacks of Trainer: when to log, evaluate and save; what to tell; when to stop."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from tunekit.errors import DivergedError, TunekitError
from tunekit.values import EventKind

if TYPE_CHECKING:
    from .job import Job

Tell = Callable[[EventKind, int, dict[str, float]], None]


class Rhythm(TrainerCallback):
    """Decide at the end of each step what happens there.

    Everything is decided at step borders, epoch ends included, so that a checkpoint is the last thing to happen at its
    step and nothing that belongs to the step comes after it. The last step needs no checkpoint: the result is saved.
    Where checkpoints can be written at some steps only, the first of them that is due or later is taken.
    """

    def __init__(self, job: Job, stop: Interrupt) -> None:
        self.config, self.border, self.stop = job.config, job.border, stop
        self.evaluate_every, self.held_out = job.evaluate_every, bool(job.evaluated)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Set the flags that Trainer acts on, in the order log, evaluate, save."""
        step, last = state.global_step, state.global_step >= state.max_steps
        at_border = step % self.border == 0
        stopping = self.stop.due and at_border and not last
        control.should_log = last or stopping or step % self.config.log.every == 0
        control.should_evaluate = self.held_out and (last or step % self.evaluate_every == 0)
        every = self.config.checkpoint.every
        due = bool(every) and step // every > (step - self.border) // every
        control.should_save = not last and at_border and (stopping or due)
        control.should_training_stop = control.should_training_stop or stopping
        return control


class Teller(TrainerCallback):
    """Tell the run's watchers when training starts and when an evaluation is done."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The step is 0, or that of the checkpoint resumed from: metrics after it are about to be told again."""
        self.tell("started", state.global_step, {})

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """An evaluation, with its true means."""
        metrics: dict[str, float] = given["metrics"]
        told = {name.replace("eval_perplexity", "perplexity"): value for name, value in metrics.items()}
        self.tell("evaluated", state.global_step, {k: v for k, v in told.items() if k not in TIMING and k != "epoch"})


TIMING = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time"}
"""What Trainer adds to an evaluation that tells nothing of the model."""


class Saver(TrainerCallback):
    """Complete the checkpoint that Trainer has just written."""

    def __init__(
        self,
        job: Job,
        state: Callable[[], dict[str, Any]],
        write: Callable[[Path], None],
    ) -> None:
        self.job, self.own_state, self.write = job, state, write

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark, rename, rotate, and only then say that it is saved."""
        self.job.parallel.wait()  # each process writes a part: its random numbers, and its share of what is in parts
        if self.job.parallel.first:
            self.job.checkpoints.complete_(state.global_step, self.own_state(), self.write)
        self.job.parallel.wait()
        self.job.tell("saved", state.global_step, {})


class Verifier(TrainerCallback):
    """Refuse to train what is not what was asked for: libraries fall back to something else without a word."""

    def __init__(self, job: Job, prepared: Callable[[], Any]) -> None:
        self.job, self.prepared = job, prepared

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The model is prepared, and no step is done."""
        mistake = self.job.parallel.mistake(self.prepared())
        if mistake is not None:
            way = "training in one process" if self.job.parallel.name == "alone" else self.job.parallel.name
            asked = f"{way} was asked for, but the model is prepared as {mistake}"
            raise TunekitError(asked, self.job.parallel.remedy(mistake))


class StepClock(TrainerCallback):
    """Stop the clock when a step is done, before logging, evaluating and saving."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimiser has stepped."""
        self.stop()


class GradientGuard(TrainerCallback):
    """Stop before a gradient that is no finite number reaches the weights."""

    def __init__(self, diverged: Callable[[str, int], DivergedError], scaled: bool) -> None:
        self.diverged, self.scaled = diverged, scaled

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look at the norm of all gradients. A loss scaler skips such steps itself, by design."""
        if self.scaled:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not math.isfinite(float(torch.nn.utils.get_total_norm(gradients))):
            raise self.diverged("the gradient norm", state.global_step + 1)


class Interrupt:
    """Ctrl-C while training: the first asks for a stop at the next step border, the second stops at once.

    `asked` is what this process has heard, `due` what all processes have agreed on at the border.
    """

    def __init__(self) -> None:
        self.asked = self.due = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while training runs; only the main thread can, elsewhere Ctrl-C arrives as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
