"""Training whose products are computed in float8: weights, what goes in and what comes back are rounded for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, Machine, ModelBundle, Plan, Report

__all__ = ["Fp8", "Fp8Config"]


class Fp8Config(PluginConfig):
    """The options of products in float8."""

    recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] = Field(
        "tensorwise",
        description="what shares a scale: a whole matrix, the fastest; a row, nearer; or a row, with the products for "
        "the gradients of weights in the compute dtype, the nearest",
    )
    skip: tuple[str, ...] = Field((), description="layers that multiply as before, by name or start of name")
    emulate: bool = Field(
        False,
        description="round to float8 and multiply in a wider dtype, on any hardware: to see what float8 does to a run, "
        "slower than no float8",
    )


class Fp8(Plugin[Fp8Config]):
    """Products of the linear layers in float8 (FP8 Formats for Deep Learning, arXiv 2209.05433), by torchao."""

    provides = frozenset({"products.float8"})

    @property
    def conflicts(self) -> frozenset[str]:  # type: ignore[override]
        """Layers that do not train, which `torchao: {kind: float8}` stores in float8; and comparisons that are exact.

        One scale for all tokens of a batch makes what is said of a sequence depend on those beside it, and so would
        a policy differ from its reference, or from what it answered itself, before it has learnt anything.
        """
        compared = {"stage.dpo", "stage.kto", "stage.rewarded"} if self.config.recipe == "tensorwise" else set()
        return frozenset({"adapter", "quantization", "weights.rounded", "processes"} | compared)

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse hardware that does not multiply in float8, and a compute dtype that it does not add up in."""
        from .float8 import problems

        return problems(self.config, plan, machine)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Say which layers stay; refuse names to skip that no layer has, and models without a layer to convert."""
        from tunekit_transformers.quantizing import note_of_experts

        from .float8 import layers_to_convert

        layers, odd = layers_to_convert(self.config, estimate.skeleton)
        notes = list(note_of_experts(estimate.skeleton, "they do not multiply in float8"))
        if odd:
            count = len(layers) + len(odd)
            notes.append(f"fp8: {len(odd)} of {count} linear layers stay, since a side is no multiple of 16")
        return replace(estimate, notes=(*estimate.notes, *notes))

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Have the linear layers but the head multiply in float8; the weights stay the same parameters."""
        from .float8 import convert_

        return convert_(self.config, bundle.model)
