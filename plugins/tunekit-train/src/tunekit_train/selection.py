"""What follows from evaluations: which weights were best, and when nothing improves any more."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from tunekit.errors import PlanError, Problem, nearest
from tunekit.values import Processes

from .config import TrainConfig
from .selecting import goes_by_metric
from .watchers import TIMING

PREFIX = "eval_"


class Selection(TrainerCallback):
    """Compare evaluations: keep the weights of the best one, and end the stage when nothing improves.

    The weights are a file of their own, beside the checkpoints and apart from their rotation. A checkpoint keeps what
    was compared so far, so that a resumed stage chooses and stops as it would have. The file that the newest checkpoint
    speaks of is kept until a newer one is complete.
    `names` tells what an evaluation will tell; it is asked before the first step, where the metric is not the loss.
    """

    def __init__(self, config: TrainConfig, key: str, folder: Path, names: Callable[[], Iterable[str]]) -> None:
        self.processes = Processes()
        self.config, self.key, self.folder, self.names = config, key, folder, names
        self.metric, self.sign = config.evaluate.metric, -1 if config.evaluate.higher_is_better else 1
        self.best: float | None = None
        self.best_step = self.saved_step = 0
        self.reference: float | None = None
        self.waited = 0
        self.stopped_at: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look whether there will be such a metric. PlanError where there is none."""
        if goes_by_metric(self.config) and self.metric != "loss":
            self._value({PREFIX + name: 0.0 for name in self.names()})

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> Any:
        """Compare, unless nothing has been trained yet."""
        if not state.global_step or not goes_by_metric(self.config):
            return control
        value = self._value(given["metrics"])
        if self.config.checkpoint.best and self._improves(value, self.best, 0.0):
            self.best, self.best_step = value, state.global_step
            self._write(model)
        patience = self.config.early_stopping.patience
        if patience is not None and self._is_over(value, patience) and state.global_step < state.max_steps:
            self.stopped_at = state.global_step
            control.should_training_stop = True
            control.should_log = True  # the steps since the last entry
            control.should_save = False  # a stage that went on from here would take another step; the result is saved
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint is complete: only what it speaks of is still wanted."""
        self.saved_step = self.best_step
        self._tidy()

    def finish_(self, model: Any, step: int) -> None:
        """Put the best weights back into the model that is now at `step`."""
        if self.best is None or self.best_step == step:
            return
        kept, trained = load_file(self._file(self.best_step)), dict(_trained(model))
        assert kept.keys() == trained.keys(), "other parameters train than when the weights were kept"
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(kept[name])

    def clear_(self) -> None:
        """Delete the files: the stage's result holds the weights."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def facts(self) -> dict[str, Any]:
        """For the record."""
        found: dict[str, Any] = {}
        if self.best is not None:
            found["best"] = {"metric": self.metric, "value": self.best, "step": self.best_step}
        if self.stopped_at is not None:
            found["stopped_early_at"] = self.stopped_at
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("best", "best_step", "reference", "waited")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        for name, value in state.items():
            setattr(self, name, value)
        self.saved_step = self.best_step

    def _value(self, metrics: Mapping[str, float]) -> float:
        if PREFIX + self.metric not in metrics:
            known = [name.removeprefix(PREFIX) for name in metrics if name.startswith(PREFIX) and name not in TIMING]
            close = nearest(self.metric, known)
            remedy = f"did you mean {close}?" if close else f"name one of {', '.join(sorted(known))}"
            what = f"is {self.metric}, which no evaluation of this stage tells"
            raise PlanError([Problem(f"{self.key}.evaluate.metric", what, remedy)])
        return float(metrics[PREFIX + self.metric])

    def _improves(self, value: float, on: float | None, least: float) -> bool:
        """A value that is no number never improves, and any number improves on nothing."""
        gain = math.inf if on is None else self.sign * (on - value)
        return not math.isnan(value) and gain > 0 and gain >= least

    def _is_over(self, value: float, patience: int) -> bool:
        if self._improves(value, self.reference, self.config.early_stopping.improvement):
            self.reference, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= patience

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"

    def _write(self, model: Any) -> None:
        """All processes come here and wait for the first: they hold the same weights, and see the same folder."""
        with self.processes.first_alone():
            if self.processes.first:
                self._write_alone(model)

    def _write_alone(self, model: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / ".partial"
        save_file({name: each.detach().cpu().contiguous() for name, each in _trained(model)}, partial)
        partial.rename(self._file(self.best_step))
        self._tidy()

    def _tidy(self) -> None:
        if not self.processes.first:
            return
        wanted = {self._file(step) for step in (self.best_step, self.saved_step)}
        for path in self.folder.glob("step-*"):
            if path not in wanted:
                path.unlink()


def _trained(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
