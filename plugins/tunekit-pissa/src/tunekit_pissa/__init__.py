"""PiSSA: a low-rank adapter that starts as the principal part of each weight, over a base that keeps the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, Machine, Plan

__all__ = ["Pissa", "PissaConfig"]


class PissaConfig(PluginConfig):
    """The options of PiSSA; rank, scale and targets are LoRA's."""

    iterations: int | None = Field(
        None,
        ge=1,
        description="find the principal part by a randomised decomposition with so many subspace iterations, which is "
        "faster; left out: by the exact one",
    )


class Pissa(Plugin[PissaConfig]):
    """Principal singular values and vectors adaptation (PiSSA, arXiv 2404.02948), as a variant of the planned LoRA."""

    requires = frozenset({"adapter.lora"})
    provides = frozenset({"adapter.pissa", "adapter.start", "base.changed"})
    # The base has to hold the residual, and quantising it once more would lose more than the adapter learns.
    conflicts = frozenset({"adapter.start", "quantization"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse 16 bits, in which residual and principal part do not add up, and a start that is none of its own."""
        from tunekit_lora.residual_checks import start_problems

        return start_problems(plan, "pissa")

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Add the factors that each adapter started from, which are kept to tell what it has learnt."""
        from tunekit_lora.residual import memory, refuse_odd

        refuse_odd(estimate.skeleton, "pissa")
        weights = estimate.memory.get("weights", 0) + memory(estimate.skeleton)
        return replace(estimate, memory=estimate.with_memory(weights=weights))

    @hookimpl
    def tunekit_lora_config(self, config: Any) -> Any:
        """Ask PEFT to decompose each weight: the adapter gets the principal part, the base keeps the residual."""
        from tunekit_lora.conversion import quietly

        count = self.config.iterations
        with quietly():
            return replace(config, init_lora_weights="pissa" if count is None else f"pissa_niter_{count}")

    @hookimpl
    def tunekit_lora_attached(self, model: Any) -> Any:
        """Remember where the adapter starts, once residual and start are known to add up to the weight."""
        from tunekit_lora.residual import refuse_narrow, refuse_odd, remember_

        refuse_odd(model, "pissa")
        refuse_narrow(model, "pissa")
        return remember_(model)

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
