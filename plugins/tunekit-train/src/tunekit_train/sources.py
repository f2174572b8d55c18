"""From the needs of an objective to what it is given: prepared once for a stage, provided for each batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .apart import divide, part_of
from .forward import Forward
from .frozen_layers import prepare_frozen_layers
from .job import Job
from .objective import Batch, Need, Objective, Part, Provided, Source
from .reference import SwitchedOff


class Sources:
    """What the needs of a job have prepared. `checkpoint` is the one that the stage goes on from."""

    def __init__(self, job: Job, checkpoint: Path | None) -> None:
        self.strategy, self.objective, self.needs = job.strategy, job.objective, job.objective.needs
        self.chunked = job.fitting.chunked_head
        self._together = _why_together(job)
        self.frozen = prepare_frozen_layers(job, checkpoint)
        self._by_key: dict[Hashable, Source] = {"frozen layers": self.frozen}
        for need in self.needs:
            if need.source_key not in self._by_key:
                with job.parallel.first_alone():  # what it writes, the others find
                    self._by_key[need.source_key] = need.prepare(job, checkpoint)
        self._further = sum(isinstance(source, SwitchedOff) for source in self._by_key.values())
        self._prepared = {need: self._by_key[need.source_key] for need in self.needs}

    def provide(self, model: Any, batch: Batch, device: torch.device) -> Provided:
        """Work out all needs for one batch, those of sequences that are only scored without gradient."""
        apart = None if self._together else divide(self.objective, batch, self.strategy, self._further)
        if apart is None:
            return Provided(self._values(model, batch, device, self.needs))
        joining = [need for need in self.needs if need.joins]
        learning = self._values(model, part_of(batch, apart.learning), device, joining)
        with torch.no_grad():
            scored = self._values(model, part_of(batch, apart.scored), device, joining)
        whole = self._values(model, batch, device, [need for need in self.needs if not need.joins])
        for need in joining:
            whole[need] = need.join([Part(learning[need], apart.learning), Part(scored[need], apart.scored)])
        return Provided(whole)

    def _values(
        self, model: Any, batch: Batch, device: torch.device, needs: Sequence[Need[Any]]
    ) -> dict[Need[Any], Any]:
        layout = self.strategy.lay_out(batch).to(device)
        forward = Forward(model, batch, layout, needs, self._prepared, self.frozen, self.chunked)
        return {need: need.provide(forward) for need in needs}

    def facts(self) -> Mapping[str, Any]:
        """What the record keeps of them."""
        facts = {name: fact for source in self._by_key.values() for name, fact in source.facts().items()}
        if type(self.objective).scored_only is not Objective.scored_only:
            facts["scored_apart"] = self._together is None
            facts["scored_apart_reason"] = self._together or "in batches where a run of their own costs less"
        return facts

    def save(self, folder: Path) -> None:
        """Write what they need to go on into a checkpoint that is being made."""
        for source in self._by_key.values():
            source.save(folder)

    def close(self) -> None:
        """The last step is done."""
        for source in self._by_key.values():
            source.close()


def _why_together(job: Job) -> str | None:
    """Why sequences that are only scored are always run with the others, or None."""
    if job.config.compute.scored_apart == "never":
        return "compute.scored_apart is never"
    return job.parallel.obstacle("scored_apart")
