"""What starts that take a part out of each weight have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Config, Plugin
from tunekit.values import Estimate, EstimateRequest, Machine, Plan


class ResidualStart(Plugin[Config]):
    """An adapter that starts as a part of each weight, over a base that keeps the rest.

    Saved as a plain LoRA of twice the rank for the base as it was: loaded by itself it would stand on a base that it
    was not trained on. `name` is the plugin's.
    """

    name: ClassVar[str]
    requires = frozenset({"adapter.lora"})
    provides = frozenset({"adapter.start", "base.changed"})
    # The base has to hold the rest, and quantising it once more would lose more than the adapter learns.
    conflicts = frozenset({"adapter.start", "quantization"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse 16 bits, in which start and rest do not add up, and a stage that begins with a saved adapter."""
        from tunekit_lora.residual_checks import start_problems

        return start_problems(plan, self.name)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Add the factors that each adapter started from, which are kept to tell what it has learnt."""
        from tunekit_lora.residual import memory, refuse_odd

        refuse_odd(estimate.skeleton, self.name)
        weights = estimate.memory.get("weights", 0) + memory(estimate.skeleton)
        return replace(estimate, memory=estimate.with_memory(weights=weights))

    @hookimpl
    def tunekit_lora_saved(self, folder: Path, model: Any) -> Path:
        """Write a plain LoRA of twice the rank, for the base as it was."""
        from tunekit_lora.conversion import convert_

        return convert_(folder, model)

    @hookimpl
    def tunekit_lora_reopened(self, model: Any, folder: Path) -> Any:
        """Take the plain LoRA apart again, so that a next stage trains what the last one trained."""
        from tunekit_lora.conversion import take_apart_

        return take_apart_(model, folder)
