"""Muon: hidden matrices move along their orthogonalised momentum, all else by AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, Machine, ModelBundle, OptimizerSettings, Plan, StageContext

__all__ = ["Muon", "MuonConfig"]


class MuonConfig(PluginConfig):
    """The options of Muon, and of AdamW beside it. Learning rate and weight decay are the stage's."""

    momentum: float = Field(0.95, ge=0, lt=1, description="decay of the mean of gradients, per step")
    nesterov: bool = Field(True, description="look a step ahead along the momentum")
    iterations: int = Field(5, ge=1, le=99, description="Newton-Schulz iterations that orthogonalise the momentum")
    adjust: Literal["match_rms_adamw", "original"] = Field(
        "match_rms_adamw",
        description="length of a step [out in]: match_rms_adamw 0.2 sqrt(max(out, in)), so that AdamW's learning rates "
        "fit; original sqrt(max(1, out / in)), for rates near 0.02",
    )
    others_share: float = Field(
        1.0, gt=0, description="share of the stage's learning rate that AdamW trains all else with"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="of AdamW: decay of the mean of gradients, per step")
    beta2: float = Field(0.999, ge=0, lt=1, description="of AdamW: decay of the mean of squared gradients, per step")
    eps: float = Field(1e-8, gt=0, description="of AdamW: added to the root of the squared mean")


class Muon(Plugin[MuonConfig]):
    """Muon, an optimizer for hidden layers (Jordan et al., 2024), as in Muon is Scalable, arXiv 2502.16982."""

    provides = frozenset({"optimizer.muon"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a momentum in bfloat16 without `nesterov`: torch's Muon then scales it in place, in each step."""
        if self.config.nesterov or plan.precision.trainable != "bfloat16":
            return []
        what = "is false, and what trains is bfloat16, where torch's Muon spoils its own momentum"
        return [Problem("use.muon.nesterov", what, "leave it true, or train in fp32 (use.precision)")]

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """One momentum for each number of a hidden matrix, two moments for all else."""
        from .together import estimate_states

        return estimate_states(self.config, request.load.precision.trainable, estimate)

    @hookimpl
    def tunekit_optimizer(
        self,
        bundle: ModelBundle,
        named_parameters: list[tuple[str, Any]],
        settings: OptimizerSettings,
        context: StageContext,
    ) -> Any:
        """Torch's Muon over hidden matrices and its AdamW over all else, as one optimiser."""
        from .together import make_optimizer

        return make_optimizer(self.config, bundle.model, named_parameters, settings)
