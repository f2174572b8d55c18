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
    provides = frozenset({"adapter.pissa", "base.changed"})
    # The base has to hold the residual, and quantising it once more would lose more than the adapter learns.
    conflicts = frozenset({"quantization"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse 16 bits, in which residual and principal part do not add up, and a start that is none of its own."""
        for stage in plan.stages:
            if stage.start is not None:
                message = "pissa begins with the principal part of each weight, and not with a saved adapter"
                yield Problem(
                    f"{stage.key}.adapter.start", message, "take pissa out: what it has trained is plain LoRA"
                )
        for kind, remedy in (
            ("weights", f"set use.precision.weights: fp32; products stay in {plan.precision.compute}"),
            ("trainable", "leave use.precision.pure out"),
        ):
            dtype = getattr(plan.precision, kind)
            if dtype != "float32":
                yield _too_narrow(kind, dtype, remedy)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Add the factors that each adapter started from, which are kept to tell what it has learnt."""
        from .factors import memory, refuse_embeddings

        refuse_embeddings(estimate.skeleton)
        weights = estimate.memory.get("weights", 0) + memory(estimate.skeleton)
        return replace(estimate, memory=estimate.with_memory(weights=weights))

    @hookimpl
    def tunekit_lora_config(self, config: Any) -> Any:
        """Ask PEFT to decompose each weight: the adapter gets the principal part, the base keeps the residual."""
        from .conversion import quietly

        count = self.config.iterations
        with quietly():
            return replace(config, init_lora_weights="pissa" if count is None else f"pissa_niter_{count}")

    @hookimpl
    def tunekit_lora_attached(self, model: Any) -> Any:
        """Remember where the adapter starts, once residual and start are known to add up to the weight."""
        from .factors import refuse_embeddings, refuse_narrow, remember_

        refuse_embeddings(model)
        refuse_narrow(model)
        return remember_(model)

    @hookimpl
    def tunekit_lora_saved(self, folder: Path, model: Any) -> Path:
        """Write a plain LoRA of twice the rank, for the base as it was."""
        from .conversion import convert_

        return convert_(folder, model)

    @hookimpl
    def tunekit_lora_reopened(self, model: Any, folder: Path) -> Any:
        """Take the plain LoRA apart again, so that a next stage trains what the last one trained."""
        from .conversion import take_apart_

        return take_apart_(model, folder)


def _too_narrow(kind: str, dtype: str, remedy: str) -> Problem:
    what = (
        "the base holds what is left of each weight" if kind == "weights" else "the adapter holds part of each weight"
    )
    message = f"{what}, and rounded to {dtype} it would not start as the model it came from"
    return Problem("use.pissa", message, remedy)
