"""The reference policy: the policy at the start of the stage, its adapter switched off or copied, or what it said."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunekit.errors import PlanError, Problem
from tunekit.values import TokenSequence

from .forward import Forward
from .heads import is_head
from .items import Indices
from .objective import Batch, Source
from .reference_file import ReferenceFile, fingerprint_of
from .scores import TokenScores

if TYPE_CHECKING:
    from .job import Job

ReferenceMode = Literal["auto", "switch_off", "copied", "cached"]
STATE = "reference.json"
CONTIGUOUS = torch.contiguous_format
EXACT = 1e-6
"""The largest difference of a log-probability with and without a fresh adapter. It adds zeros, so none is expected."""


class Reference(Source, ABC):
    """Where the reference's log-probabilities come from, and why from there."""

    name: str

    def __init__(self, reason: str) -> None:
        self.reason = reason

    @abstractmethod
    def scores(self, forward: Forward) -> TokenScores:
        """The log-probabilities of a batch, without gradient, in the order of its sequences."""

    def facts(self) -> Mapping[str, Any]:
        """Which way was chosen."""
        return {"reference": self.name, "reference_reason": self.reason}

    def save(self, folder: Path) -> None:
        """Keep the choice: it cannot be made again once the adapter has learnt."""
        (folder / STATE).write_text(json.dumps({"name": self.name, "reason": self.reason}))


class LiveReference(Reference):
    """A reference that can be run on anything, also on what nobody has seen before the first step."""

    @abstractmethod
    def acting(self, model: Any) -> AbstractContextManager[None]:
        """Let the model be the reference for a while. Nothing may be trained meanwhile."""

    def scores(self, forward: Forward) -> TokenScores:
        """One more run of the model."""
        with self.acting(forward.model):
            return frozen_scores(forward.model, forward)


class SwitchedOff(LiveReference):
    """The model without its adapter, run for each batch."""

    name = "switch_off"

    def acting(self, model: Any) -> AbstractContextManager[None]:
        """The adapter is off."""
        return switched_off(model)


class Copied(LiveReference):
    """The model with a frozen copy of what trains in its place, run for each batch.

    For any adapter, whatever it has learnt before: what trains is a small part of the weights then. `start` holds its
    values at the start of the stage, by the names of the parameters.
    """

    name = "copied"
    FILE = "reference.safetensors"

    def __init__(self, reason: str, start: Mapping[str, Tensor]) -> None:
        super().__init__(reason)
        self.start = start

    @classmethod
    def of(cls, model: Any, reason: str) -> Copied:
        """Copy what trains as it is now, laid out as a file gives it back: products round by how it lies in memory."""
        copied = ((name, each.detach().clone(memory_format=CONTIGUOUS)) for name, each in _weights_that_train(model))
        return cls(reason, dict(copied))

    @contextmanager
    def acting(self, model: Any) -> Iterator[None]:
        """The start stands in for what trains. The tensors are swapped, so that nothing is copied back and forth."""
        trained = [(each, each.data) for _, each in _weights_that_train(model)]
        try:
            for name, each in _weights_that_train(model):
                each.data = self.start[name].to(each.device, each.dtype)
            yield
        finally:
            for parameter, data in trained:
                parameter.data = data

    def facts(self) -> Mapping[str, Any]:
        """Which way was chosen, and what it takes."""
        return {**super().facts(), "reference_bytes": sum(each.nbytes for each in self.start.values())}

    def save(self, folder: Path) -> None:
        """Keep the choice and the copy."""
        super().save(folder)
        save_file({name: each.cpu().contiguous() for name, each in self.start.items()}, folder / self.FILE)


class Cached(Reference):
    """What the model said of every item before the first step."""

    name = "cached"

    def __init__(self, reason: str, file: ReferenceFile) -> None:
        super().__init__(reason)
        self.file = file

    def scores(self, forward: Forward) -> TokenScores:
        """Read."""
        layout = forward.layout
        found = torch.cat([self.file.read(sequence) for sequence in forward.batch.sequences])
        return TokenScores(found.to(layout.weights.device), layout.weights, layout.owners)

    def facts(self) -> Mapping[str, Any]:
        """Which way was chosen, and what it took."""
        return {**super().facts(), "reference_tokens": self.file.rows, "reference_sequences": self.file.sequences}

    def save(self, folder: Path) -> None:
        """Keep the choice, and which file it was."""
        kept = {"name": self.name, "reason": self.reason, "fingerprint": self.file.fingerprint}
        (folder / STATE).write_text(json.dumps(kept))


def prepare_reference(mode: ReferenceMode, job: Job, checkpoint: Path | None) -> Reference:
    """Choose where the reference comes from, or do as before the checkpoint.

    Raises:
        PlanError: the adapter cannot be switched off, and it was asked for or the data is streamed; or the file that
            an interrupted stage used is gone.
    """
    if checkpoint is not None:
        return _as_before(job, checkpoint)
    items = CanonicalPass(job)
    obstacle = None if mode in ("cached", "copied") else switching_obstacle(job)
    if mode == "copied":
        return Copied.of(job.bundle.model, "asked for")
    if obstacle and job.stream is not None and mode == "auto" and hasattr(job.bundle.model, "disable_adapter"):
        return Copied.of(job.bundle.model, f"{obstacle}, and streamed data cannot be scored beforehand")
    if job.stream is not None and (mode == "cached" or obstacle):
        why = obstacle or "cached was asked for"
        reason = f"streams its data, so the reference cannot be computed beforehand, and {why}"
        raise PlanError([Problem(job.context.key, reason, "stream nothing, or train an adapter such as lora")])
    if mode == "switch_off" and obstacle:
        raise PlanError([Problem(job.context.key, f"cannot switch the adapter off: {obstacle}", "leave it to auto")])
    verified = "the fresh adapter was seen to change nothing"
    if mode == "switch_off" or job.stream is not None:
        return SwitchedOff(verified)
    costs = f"{items.count} items to run beforehand, {items.repeated} with the adapter switched off"
    if mode == "auto" and not obstacle and items.repeated <= items.count:
        return SwitchedOff(f"{verified}; {costs}")
    return Cached(obstacle or (costs if mode == "auto" else "asked for"), items.file())


def switching_obstacle(job: Job, batch: Batch | None = None) -> str | None:
    """Say why the model without its adapter is not the policy at the start, or None where it is verified to be.

    Verified on this batch, else on the first of the data.
    """
    model = job.bundle.model
    if (why := job.parallel.obstacle("switch_off")) is not None:
        return why
    if not hasattr(model, "disable_adapter"):
        return "no adapter was attached: the weights themselves train"
    if (why := _changed_already(model)) is not None:
        return why
    if batch is None:
        items = job.training if job.stream is None else job.stream
        batch = Batch(tuple(islice(items, 1 if job.config.batch.tokens else job.config.batch.rows)))
    enabled = policy_scores(job, batch)
    with switched_off(model):
        difference = (enabled - policy_scores(job, batch)).abs()
    if len(difference) and not float(difference.max()) <= EXACT:
        return f"switching the adapter off changes log-probabilities by {float(difference.max()):.2g}"
    return None


def _changed_already(model: Any) -> str | None:
    """Say what trains besides an adapter that adds nothing yet: one of whose parts in each module is all zeros."""
    prefix = getattr(model.base_model, "prefix", None)
    if prefix is None:
        return "the adapter is of a kind that is not known to switch off exactly"
    fresh: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or is_head(name):
            continue
        module, found, _ = name.partition(f".{prefix}")
        if not found:
            return f"{name} trains outside the adapter"
        fresh[module] = fresh.get(module, False) or not bool(parameter.detach().any())
    changed = next((module for module, zero in fresh.items() if not zero), None)
    return None if changed is None else f"the adapter is not fresh: it changes {changed}"


def policy_scores(job: Job, batch: Batch) -> Tensor:
    """The log-probabilities of a batch in the model as it is, dropout off, fp32 [supervised], without gradient."""
    model = job.bundle.model
    layout = job.strategy.lay_out(batch).to(next(model.parameters()).device)
    with job.autocast():
        return frozen_scores(model, Forward(model, batch, layout, chunked=job.fitting.chunked_head)).log_probs


def frozen_scores(model: Any, forward: Forward) -> TokenScores:
    """Score the batch of another forward without gradient, dropout and noise."""
    from .needs import TokenLogProbs

    need = TokenLogProbs()
    with evaluating(model), torch.no_grad():
        return need.provide(Forward(model, forward.batch, forward.layout, (need,), chunked=forward.chunked))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put each module into evaluation mode, and back into the one it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """Switch the adapter off. What trains stays what it is: PEFT would make all of the adapter train afterwards."""
    adapted = model.module if hasattr(model, "module") else model  # a distributed wrapper
    trains = [(parameter, parameter.requires_grad) for parameter in adapted.parameters()]
    try:
        with adapted.disable_adapter():
            yield
    finally:
        for parameter, train in trains:
            parameter.requires_grad_(train)


class CanonicalPass:
    """The items that a stage will see, each once, in the order of the data, then those held out."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @property
    def count(self) -> int:
        """Items in the pass."""
        return len(self._visited) + len(self.job.held_out)

    @property
    def repeated(self) -> int:
        """Items in all steps and evaluations of the stage, each as often as it comes."""
        job = self.job
        per_batch = len(job.training) / max(1, len(job.order))
        trained = job.total_steps * job.config.batch.accumulation * per_batch
        evaluations = math.ceil(job.total_steps / job.evaluate_every) + job.config.evaluate.at_start
        return round(trained) + len(job.held_out) * evaluations

    def file(self) -> ReferenceFile:
        """What the model says of them: found whole from an earlier start, or worked out."""
        folder = self.job.context.folder / "reference"
        fingerprint = fingerprint_of(self.job.bundle.model, (each for batch in self for each in batch.sequences))
        found = ReferenceFile.find(folder, fingerprint)
        return found or ReferenceFile.make(folder, fingerprint, self._scored())

    def __iter__(self) -> Iterator[Batch]:
        job = self.job
        for items, chosen in ((job.training, self._visited), (job.held_out, np.arange(len(job.held_out)))):
            yield from job.in_turn(items, chosen)

    def _scored(self) -> Iterator[tuple[TokenSequence, Tensor]]:
        """Every sequence with the log-probabilities of its supervised tokens."""
        for batch in self:
            counts = [int(np.count_nonzero(np.asarray(sequence.weights)[1:])) for sequence in batch.sequences]
            scores = policy_scores(self.job, batch).float().cpu()
            yield from zip(batch.sequences, torch.split(scores, counts), strict=True)

    @cached_property
    def _visited(self) -> Indices:
        """The numbers of the items that will be trained on, each once, ascending."""
        job, epoch = self.job, 0
        left, seen = job.total_steps * job.config.batch.accumulation, np.zeros(len(job.training), dtype=bool)
        while left > 0 and not seen.all():
            batches = list(islice(job.order.batches(epoch), left))
            for batch in batches:
                seen[batch] = True
            left, epoch = left - len(batches), epoch + 1
        return np.flatnonzero(seen)


def _weights_that_train(model: Any) -> Iterator[tuple[str, Any]]:
    """What trains and has a part in log-probabilities."""
    named = (model.module if hasattr(model, "module") else model).named_parameters()
    return ((name, each) for name, each in named if each.requires_grad and not is_head(name))


def live_as_before(checkpoint: Path) -> LiveReference:
    """The reference that can be run on anything, as it was before the stage was interrupted."""
    kept = json.loads((checkpoint / STATE).read_text())
    if kept["name"] == SwitchedOff.name:
        return SwitchedOff(kept["reason"])
    return Copied(kept["reason"], load_file(checkpoint / Copied.FILE))


def _as_before(job: Job, checkpoint: Path) -> Reference:
    """Do as the stage did before it was interrupted."""
    kept = json.loads((checkpoint / STATE).read_text())
    if kept["name"] != Cached.name:
        return live_as_before(checkpoint)
    folder = job.context.folder / "reference"
    found = ReferenceFile.find(folder, kept["fingerprint"])
    if found is None:
        reason = f"goes on from a checkpoint whose reference log-probabilities are not in {folder}, as they were then"
        remedy = "put the folder back, or start the run anew: the trained model cannot say what it said at the start"
        raise PlanError([Problem(job.context.key, reason, remedy)])
    return Cached(kept["reason"], found)
