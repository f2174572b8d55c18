"""Layers below the first that trains, computed once: their hidden states are kept in a file and given to the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunekit.values import TokenSequence

from .attentions import attention_of
from .forward import Forward, base_model, segments_obstacle
from .hidden_file import HiddenFile, fingerprint_of
from .layers import find_layers, first_trained, given, listened_to, lower_only, relative_difference
from .layout import Layout
from .objective import Batch, Source
from .reference import CanonicalPass, evaluating

if TYPE_CHECKING:
    from .job import Job

STATE = "frozen_layers.json"
GIB = 1 << 30
CLOSE = {torch.float32: 1e-4}
"""How far, relative to their norm, hidden states may be from those of the same sequences in another batch."""
CLOSE_IN_HALF = 3e-2
"""The same in half precision, where each of many layers rounds to 3 digits."""


class FrozenLayers(Source):
    """How many lower layers are not computed again, and why that many; 0: all are computed each time."""

    def __init__(self, job: Job, count: int, reason: str, file: HiddenFile | None = None) -> None:
        self.count, self.reason, self.file = count, reason, file
        self._layers = find_layers(job.bundle.model) if file is not None else None

    def given(self, batch: Batch, layout: Layout) -> AbstractContextManager[None]:
        """Inside, the model does not compute these layers for this batch."""
        if self.file is None or self._layers is None:
            return nullcontext()
        return given(self._layers, self.count, laid(self.file, batch, layout))

    def facts(self) -> Mapping[str, Any]:
        """What was chosen, and what it takes."""
        size = {} if self.file is None else {"frozen_layers_bytes": self.file.bytes}
        return {"frozen_layers": self.count, "frozen_layers_reason": self.reason, **size}

    def save(self, folder: Path) -> None:
        """Keep the choice: what the disk has room for may be another tomorrow."""
        (folder / STATE).write_text(json.dumps({"count": self.count, "reason": self.reason}))

    def close(self) -> None:
        """Nobody will ask again."""
        if self.file is not None:
            self.file.delete()


def prepare_frozen_layers(job: Job, checkpoint: Path | None) -> FrozenLayers:
    """Choose whether to compute the frozen layers once, and do so; or do as before the checkpoint."""
    kept = _kept(checkpoint)
    if kept is not None:
        count, reason = kept["count"], kept["reason"]
        return FrozenLayers(job, count, reason, _Filling(job, count).file() if count else None)
    obstacle = _obstacle(job)
    if obstacle is None:
        filling = _Filling(job, first_trained(_layers_of(job)))
        obstacle = filling.obstacle()
    if obstacle is not None:
        return FrozenLayers(job, 0, obstacle)
    file = filling.file()
    if (difference := filling.difference(file)) is not None:
        file.delete()
        return FrozenLayers(job, 0, difference)
    reason = f"{filling.count} layers below the first that trains, for {filling.items.repeated} items instead of "
    return FrozenLayers(job, filling.count, f"{reason}{filling.items.count}", file)


def laid(file: HiddenFile, batch: Batch, layout: Layout) -> Tensor:
    """The hidden states of a batch as its tokens lie, [batch, seq, hidden size]; zeros where there is padding."""
    if layout.attention_mask is not None:
        parts = [file.read(sequence) for sequence in batch.sequences]
        out = parts[0].new_zeros(*layout.input_ids.shape, parts[0].shape[-1])
        for row, part in zip(out, parts, strict=True):
            row[: len(part)] = part
        return out.to(layout.input_ids.device)
    parts = [file.read(batch.sequences[at])[start:end] for at, start, end in segments(layout)]
    return torch.cat(parts)[None].to(layout.input_ids.device)


def segments(layout: Layout) -> Iterator[tuple[int, int, int]]:
    """For each segment the number of its sequence, and from where to where in it; a shared prompt is the next one's."""
    at, pairs = 0, list(zip(layout.lengths, layout.key_lengths, strict=True))
    for (own, seen), following in zip(pairs, [*pairs[1:], (0, 0)], strict=True):
        yield at, seen - own, seen
        shared = own == seen and following[0] < following[1]
        at += not shared


def _kept(checkpoint: Path | None) -> dict[str, Any] | None:
    if checkpoint is None or not (checkpoint / STATE).is_file():
        return None
    kept: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
    return kept


def _layers_of(job: Job) -> torch.nn.ModuleList:
    layers = find_layers(job.bundle.model)
    assert layers is not None, "a model without layers is refused before"
    return layers


def _obstacle(job: Job) -> str | None:
    """Why the layers cannot be left out, from the options and from what the model is made of."""
    model = job.bundle.model
    if job.config.compute.frozen_layers == "never":
        return "compute.frozen_layers is never"
    if job.stream is not None or job.produced is not None:
        return "the data is not known beforehand"
    if job.config.compute.compile:
        return "compute.compile compiles the layers"
    if any(need.asks() for need in job.objective.needs):
        return "the objective asks for something that all layers say"
    if (why := job.parallel.obstacle("frozen_layers")) is not None:
        return why
    layers = find_layers(model)
    if layers is None:
        return "the model has no stack of layers"
    count = first_trained(layers)
    if not count:
        return "the first layer trains"
    if (why := segments_obstacle(model) or attention_of(base_model(model)).traits.evaluation) is not None:
        return why
    if any("forward" in vars(layer) for layer in layers):
        return "the forward of a layer is replaced already"
    inside = (module for layer in layers[:count] for module in layer.modules())
    if any("forward" not in vars(module) and listened_to(module) for module in inside):
        return "a hook listens inside a layer that would not run"
    items = CanonicalPass(job)
    if items.repeated <= items.count:
        return "no item comes more than once"
    return None


class _Filling:
    """The one pass over all items through the lower `count` layers."""

    def __init__(self, job: Job, count: int) -> None:
        self.job, self.count = job, count
        self.items = CanonicalPass(job)
        self.layers = _layers_of(job)

    def obstacle(self) -> str | None:
        """Why what comes out of these layers is not the same each time, or too much to keep."""
        batch, model = self._first(), self.job.bundle.model
        with torch.random.fork_rng(), torch.enable_grad():
            model.train()
            trained = self._compute(batch)
        with evaluating(model), torch.no_grad():
            evaluated = self._compute(batch)
        if trained.requires_grad:
            names = [name for name, each in model.named_parameters() if each.requires_grad]
            return f"{names[0]} trains, and the layers below the first that trains see it"
        if not torch.equal(trained, evaluated):
            return "what the frozen layers say is not the same each time: dropout, or noise on the embeddings"
        return self._too_large(evaluated.shape[-1] * evaluated.element_size())

    def file(self) -> HiddenFile:
        """What the layers say of all items: found whole from an earlier start, or worked out."""
        folder, precision = self.job.context.folder / "frozen_layers", self.job.bundle.precision
        dtype = f"{precision.compute} {precision.autocast}"
        sequences = (each for batch in self.items for each in batch.sequences)
        fingerprint = fingerprint_of(self.job.bundle.model, self.count, dtype, sequences)
        return HiddenFile.find(folder, fingerprint) or HiddenFile.make(folder, fingerprint, self._seen())

    def difference(self, file: HiddenFile) -> str | None:
        """Say how the file differs from what the layers say of a batch laid out as for training, or None."""
        batch, job = self._first(), self.job
        layout = job.strategy.lay_out(batch)
        real = slice(None) if layout.attention_mask is None else layout.attention_mask.bool()
        with evaluating(job.bundle.model), torch.no_grad():
            computed = self._run(batch, layout)[real]
        apart = relative_difference(laid(file, batch, layout)[real].to(computed.device), computed)
        if apart <= CLOSE.get(computed.dtype, CLOSE_IN_HALF):
            return None
        return f"kept hidden states differ from computed ones by {apart:.2g} of their size"

    def _first(self) -> Batch:
        return Batch(tuple(self.job.training.take(item) for item in self.job.order.batches(0)[0]))

    def _too_large(self, bytes_per_token: int) -> str | None:
        needed = bytes_per_token * sum(sum(_lengths(batch.sequences)) for batch in self.items)
        limit, free = self.job.config.compute.frozen_layers_gib, shutil.disk_usage(self.job.context.folder).free
        if needed > limit * GIB:
            return f"hidden states take {needed / GIB:.2g} GiB, more than compute.frozen_layers_gib: {limit:g}"
        return f"hidden states take {needed / GIB:.2g} GiB, and the disk has no room" if needed > free / 2 else None

    def _seen(self) -> Iterator[tuple[TokenSequence, Tensor]]:
        model = self.job.bundle.model
        for batch in self.items:
            with evaluating(model), torch.no_grad():
                hidden = self._compute(batch)
            yield from zip(batch.sequences, torch.split(hidden, _lengths(batch.sequences)), strict=True)

    def _compute(self, batch: Batch) -> Tensor:
        """What comes out of the layers for the sequences of a batch, one after the other, [tokens, hidden size]."""
        layout = replace(self.job.strategy, share_prompts=False).lay_out(batch)
        hidden = self._run(batch, layout)
        return hidden[0] if layout.attention_mask is None else hidden[layout.attention_mask.bool()]

    def _run(self, batch: Batch, layout: Layout) -> Tensor:
        model = self.job.bundle.model
        moved = layout.to(next(model.parameters()).device)
        with self.job.autocast(), lower_only(self.layers, self.count) as taken:
            Forward(model, batch, moved).logits(moved.positions[:1])
        return taken[0]


def _lengths(sequences: tuple[TokenSequence, ...]) -> list[int]:
    return [len(sequence) for sequence in sequences]
