"""From the needs of an objective to what it is given: prepared once for a stage, provided for each batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch

from .forward import Forward
from .frozen_layers import prepare_frozen_layers
from .job import Job
from .objective import Batch, Provided, Source


class Sources:
    """What the needs of a job have prepared. `checkpoint` is the one that the stage goes on from."""

    def __init__(self, job: Job, checkpoint: Path | None) -> None:
        self.strategy, self.needs = job.strategy, job.objective.needs
        self.frozen = prepare_frozen_layers(job, checkpoint)
        self._by_key: dict[Hashable, Source] = {"frozen layers": self.frozen}
        for need in self.needs:
            if need.source_key not in self._by_key:
                self._by_key[need.source_key] = need.prepare(job, checkpoint)
        self._prepared = {need: self._by_key[need.source_key] for need in self.needs}

    def provide(self, model: Any, batch: Batch, device: torch.device) -> Provided:
        """Work out all needs for one batch."""
        layout = self.strategy.lay_out(batch).to(device)
        forward = Forward(model, batch, layout, self.needs, self._prepared, self.frozen)
        return Provided({need: need.provide(forward) for need in self.needs})

    def facts(self) -> Mapping[str, Any]:
        """What the record keeps of them."""
        return {name: fact for source in self._by_key.values() for name, fact in source.facts().items()}

    def save(self, folder: Path) -> None:
        """Write what they need to go on into a checkpoint that is being made."""
        for source in self._by_key.values():
            source.save(folder)

    def close(self) -> None:
        """The last step is done."""
        for source in self._by_key.values():
            source.close()
