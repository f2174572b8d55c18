"""Callbacks of TRL's trainers: when to log, evaluate and save, and what is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from tunekit_train.watchers import Interrupt

from .session import Session

TIMED = ("_runtime", "_per_second", "epoch", "step_time")


class Rhythm(TrainerCallback):
    """Decide at the end of each step what happens there.

    A checkpoint is written where all answers have been used and the next ones are not yet there, at the first such
    border behind each multiple of `checkpoint.every`; so is the one that an interruption asks for. Metrics are told
    there too: what they are means of is not kept in checkpoints.
    """

    def __init__(self, session: Session, stop: Interrupt) -> None:
        self.session, self.stop = session, stop

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Set the flags that Trainer acts on, in the order log, evaluate, save."""
        config, step, period = self.session.config, state.global_step, self.session.period
        last, border = step >= state.max_steps, step % period == 0
        stopping, every = self.stop.asked and border and not last, config.checkpoint.every
        due = bool(every) and border and step // every > (step - period) // every
        control.should_save = not last and (stopping or due)
        control.should_log = last or control.should_save or step % config.log.every == 0
        rounds = self.session.evaluate_every
        control.should_evaluate = bool(self.session.held_out) and (last or step % rounds == 0)
        control.should_training_stop = control.should_training_stop or stopping
        return control


class Teller(TrainerCallback):
    """Tell the run's watchers of the start, of every log and of every evaluation, by TRL's names of the metrics."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The step is 0, or that of the checkpoint resumed from: metrics after it are about to be told again."""
        self.session.tell("started", state.global_step, {})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Metrics of the steps since the last log, or of an evaluation."""
        metrics = told(logs or {})
        if "eval_loss" in metrics:
            self.session.tell("evaluated", state.global_step, metrics)
        elif "loss" in metrics:
            self.session.tell("step", state.global_step, metrics)


def told(logs: Mapping[str, Any]) -> dict[str, float]:
    """Metrics that are numbers: some have none where no answer ended, say. How long it took differs each time."""
    numbers = {name: float(value) for name, value in logs.items() if isinstance(value, (int, float))}
    return {name: value for name, value in numbers.items() if math.isfinite(value) and not name.endswith(TIMED)}
