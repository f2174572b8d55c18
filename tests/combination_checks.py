"""What a combination of techniques has to show, each on the tiny model and on one thread in about a second."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from combination_helpers import COMMON, OWN_ANSWERS, Cell, Materials, installed, recipe_of
from torch.optim.optimizer import register_optimizer_step_pre_hook

import tunekit as tk
from tunekit import engine
from tunekit.engine import open_model
from tunekit.errors import InterruptedRunError, PlanError
from tunekit.testing.observing import Snapshot, snapshot
from tunekit.values import Event, Plan
from tunekit_train import TrainConfig
from tunekit_train.heads import is_head

QUESTIONS = ("trains", "gradients", "resumes", "exports")
"""What is asked of a combination, in this order; each is a method of `Trial`."""
YES, REFUSED, FAILED = "yes", "refused", "failed"
PLAIN: dict[str, Any] = {
    "steps": 1,
    "batch": {"padding": "always", "share_prompts": False},
    "compute": dict.fromkeys(
        ("lora_product", "frozen_layers", "scored_apart", "chunked_head", "checkpointing", "offload"), "never"
    ),
}
"""One step of the engine without anything that makes it fast."""
MEASURED = frozenset({"eva", "corda", "loraga"})
"""Starts that are measured on the data: rounded otherwise, by another attention, directions change their sign."""
APART = 1e-3
"""How far, of its length, a gradient may be from the one of another order of summation in float32."""
TARGETS = ("merged", "adapter")
"""What is exported: the first of them that the planner accepts."""


class Trial:
    """One combination that is run. Each question is answered with `yes`, with what was done, or with why it is
    refused; AssertionError, or whatever went wrong, where the answer is no.
    """

    def __init__(self, cell: Cell, materials: Materials, folder: Path) -> None:
        self.cell, self.materials, self.folder = cell, materials, folder
        self.gradient: Snapshot = {}

    @cached_property
    def plan(self) -> Plan:
        """With its estimate."""
        return tk.Pipeline(**recipe_of(self.cell, self.materials)).plan()

    @cached_property
    def run(self) -> tk.Run:
        """Trained without a break; the gradients of its first step are kept."""
        with first_gradients() as found:
            run = engine.start(self.plan, self.folder / "run")
        self.gradient = named(found, run.bundle.model)
        return run

    def trains(self) -> str:
        """The loss falls, and what the plan says is to train does, and nothing else changes by one bit."""
        start = open_model(self.plan, self.folder).use(self.plan.final_adapter).model
        before = snapshot(start)
        trained = {name for name, parameter in start.named_parameters() if parameter.requires_grad}
        assert self.plan.estimate is not None
        counted, there = self.plan.estimate.trainable, sum(before[name].numel() for name in trained)
        assert counted == there, f"the plan counts {counted} numbers that train, and there are {there}"
        if self.cell.stage == "reward":  # it values hidden states, and asks nothing of the head for words
            trained = {name for name in trained if ".lm_head." not in f".{name}"}
        check_losses(self.cell, losses(self.run))
        after = snapshot(self.run.bundle.model)
        assert {name for name in after if not is_head(name)} == before.keys(), "other weights than before"
        assert all(bool(each.isfinite().all()) for each in after.values() if each.is_floating_point()), "not finite"
        moved = {name for name in before if not after[name].to(before[name].dtype).equal(before[name])}
        slack = 1e-6 if changes_base(self.cell) else 0.0
        changed = [name for name in moved - trained if not torch.allclose(after[name], before[name], 0, slack)]
        assert not changed, f"frozen by the plan, but changed: {changed[:3]}"
        assert not trained - moved, f"trained by the plan, but never changed: {sorted(trained - moved)[:3]}"
        return YES

    def gradients(self) -> str:
        """Loss and every gradient of the first step are those of the plain padded computation with eager attention."""
        if not on_our_engine(self.cell):
            return f"{REFUSED}: TRL computes it, whatever else is planned"
        first = next(line for line in self.run.metrics if line["kind"] == "step")
        attention = {} if MEASURED & set(self.cell.adapter) else {"attention": {"kind": "eager"}}
        recipe = recipe_of(self.cell, self.materials, PLAIN, **attention)
        with first_gradients() as found:
            plain = tk.Pipeline(**recipe).run(self.folder / "plain")
        other = next(line for line in plain.metrics if line["kind"] == "step")
        one, two = first["loss"], other["loss"]
        assert math.isclose(one, two, rel_tol=APART, abs_tol=1e-6), f"the loss is {one}, and plainly computed {two}"
        check_gradients(self.gradient, named(found, plain.bundle.model))
        return YES

    def resumes(self) -> str:
        """Stopped after two steps and taken up again, it reaches the same bits."""
        resumed = self._interrupted(2)
        assert losses(self.run) == losses(resumed), f"losses {losses(self.run)}, and {losses(resumed)} when resumed"
        one, two = (snapshot(run.bundle.model) for run in (self.run, resumed))
        other = [name for name in one if not torch.equal(one[name], two[name])]
        assert one.keys() == two.keys(), "resumed, it has other weights"
        assert not other, f"resumed, these are others: {other[:3]}"
        return YES

    def exports(self) -> str:
        """The first target that is accepted; the export itself sees that what is read again says what was trained."""
        reasons = []
        for target in TARGETS:
            try:
                self.run.export(target)
            except PlanError as error:
                reasons.append(f"{target}: {'; '.join(each.message for each in error.problems)}")
            else:
                return "; ".join([target, *(f"{REFUSED} {each}" for each in reasons)])
        return "; ".join(f"{REFUSED} {each}" for each in reasons)

    def _interrupted(self, step: int) -> tk.Run:
        """A run that Ctrl-C stops after a step, and that is then continued."""

        def stop(event: Event) -> None:
            if event.kind == "step" and event.step == step:
                os.kill(os.getpid(), signal.SIGINT)

        folder = self.folder / "resumed"
        try:
            engine.start(self.plan, folder, [stop])
        except InterruptedRunError:
            return engine.resume(self.plan, folder)
        raise AssertionError("the run went on after Ctrl-C")


@contextmanager
def first_gradients() -> Iterator[dict[Any, torch.Tensor]]:
    """The gradient of each parameter when an optimiser takes a step for the first time, whichever it is."""
    found: dict[Any, torch.Tensor] = {}

    def keep(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        found.update({} if found else {each: each.grad.clone() for each in parameters})

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def named(found: dict[Any, torch.Tensor], model: Any) -> Snapshot:
    """Those of the parameters that a model has, by their names."""
    return {name: found[parameter] for name, parameter in model.named_parameters() if parameter in found}


def check_gradients(fast: Snapshot, plain: Snapshot) -> None:
    """Each is there in both, and the same but for rounding."""
    assert fast, "no parameter had a gradient"
    assert fast.keys() == plain.keys(), f"gradients of {len(fast)} parameters, and plainly of {len(plain)}"
    whole = math.sqrt(sum(float(each.square().sum()) for each in plain.values()))
    apart = {name: float((fast[name] - plain[name]).norm()) for name in plain}
    far = [name for name in plain if apart[name] > APART * float(plain[name].norm()) + 1e-5 * whole]
    assert not far, f"other gradients than the plain computation's: {[(name, apart[name]) for name in far[:3]]}"


def losses(run: tk.Run) -> list[float]:
    """The loss of each step."""
    return [line["loss"] for line in run.metrics if line["kind"] == "step"]


def check_losses(cell: Cell, found: Sequence[float]) -> None:
    """They are finite, and fall from the first epoch to the last where they say something about progress."""
    assert all(map(math.isfinite, found)), f"losses {found}"
    epoch = len(found) // COMMON["epochs"]
    falls = sum(found[-epoch:]) < sum(found[:epoch])
    assert falls or cell.stage in OWN_ANSWERS, f"the loss does not fall: {found}"


def on_our_engine(cell: Cell) -> bool:
    """Whether the stage has the engine's switches."""
    return issubclass(installed()[cell.stage].config_type(), TrainConfig) and cell.stage not in {"grpo", "rloo"}


def changes_base(cell: Cell) -> bool:
    """Whether the adapter takes its start out of the base, which rounds when a run is opened again."""
    provided = (installed()[name].provides for name in cell.adapter)
    return any(isinstance(each, frozenset) and "base.changed" in each for each in provided)


def answers(cell: Cell, materials: Materials, folder: Path, questions: Sequence[str] = QUESTIONS) -> dict[str, str]:
    """What a combination has shown of each of these; raises where one of them is not so."""
    trial = Trial(cell, materials, folder)
    assert set(questions) <= set(QUESTIONS)
    return {question: getattr(trial, question)() for question in questions}
