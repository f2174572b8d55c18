"""Optimisers whose states are 8 bits wide, or wait in the host's memory, through bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, Machine, ModelBundle, OptimizerSettings, Plan, StageContext

__all__ = ["BnbOptimizer", "BnbOptimizerConfig", "Kind"]

Kind = Literal["adamw", "lion", "ademamix"]
"""Which optimiser: those of bitsandbytes that can be paged."""

DEVICES = frozenset({"cpu", "cuda", "xpu"})
"""Where bitsandbytes has kernels for a step."""

_USES: dict[str, frozenset[str]] = {
    "adamw": frozenset({"eps"}),
    "lion": frozenset(),
    "ademamix": frozenset({"eps", "beta3", "alpha", "ramp_up"}),
}
_BETAS: dict[str, tuple[float, float]] = {"adamw": (0.9, 0.999), "lion": (0.9, 0.99), "ademamix": (0.9, 0.999)}


class BnbOptimizerConfig(PluginConfig):
    """The options of bitsandbytes' optimisers. Learning rate and weight decay are the stage's."""

    kind: Kind = Field(
        "adamw", description="adamw; lion: one moment and steps of one size; ademamix: a second, slow mean of gradients"
    )
    bits: Literal[8, 32] = Field(8, description="bits for each number of the states; 8: in blocks of 256, with a scale")
    paged: bool = Field(
        False, description="let states of an accelerator move to the host's memory where there is no room (cuda, xpu)"
    )
    smallest: int = Field(
        4096, ge=0, description="parameters with fewer numbers keep states of 32 bits; means nothing with bits: 32"
    )
    beta1: float | None = Field(None, ge=0, lt=1, description="decay of the mean of gradients, per step; default 0.9")
    beta2: float | None = Field(
        None, ge=0, lt=1, description="decay of the mean of squared gradients, of lion the momentum; 0.999, lion 0.99"
    )
    beta3: float = Field(0.9999, ge=0, lt=1, description="of ademamix: decay of the slow mean of gradients, per step")
    alpha: float = Field(5.0, ge=0, description="of ademamix: weight of the slow mean")
    ramp_up: bool = Field(
        True, description="of ademamix: let beta3 and alpha rise over all steps of the stage, as in the paper"
    )
    eps: float = Field(1e-8, gt=0, description="added to the root of the squared mean; not of lion")

    @model_validator(mode="after")
    def _every_option_acts(self) -> BnbOptimizerConfig:
        every = frozenset().union(*_USES.values())
        idle = sorted((every - _USES[self.kind]) & self.model_fields_set)
        if idle:
            raise ValueError(f"{', '.join(idle)} means nothing with {self.kind}; leave it out")
        if self.bits == 32 and "smallest" in self.model_fields_set:
            raise ValueError("smallest means nothing with 32 bits; leave it out")
        return self

    @property
    def betas(self) -> tuple[float, ...]:
        """The decays that are used."""
        beta1, beta2 = _BETAS[self.kind]
        fast = (beta1 if self.beta1 is None else self.beta1, beta2 if self.beta2 is None else self.beta2)
        return (*fast, self.beta3) if self.kind == "ademamix" else fast


class BnbOptimizer(Plugin[BnbOptimizerConfig]):
    """8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861, and paged ones, arXiv 2305.14314."""

    @property
    def provides(self) -> frozenset[str]:
        """Which of them it is."""
        return frozenset({"optimizer.bnb", f"optimizer.{self.config.kind}"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse devices without kernels, and pages where there is no other memory to move them to."""
        device = plan.precision.device
        if device not in DEVICES:
            remedy = f"leave it out, or run on one of {', '.join(sorted(DEVICES))}"
            return [Problem("use.bnb-optimizer", f"bitsandbytes has no kernels for a step on {device}", remedy)]
        if self.config.paged and device == "cpu":
            what = "is true, and the states are in the host's memory already; bitsandbytes would page nothing"
            return [Problem("use.bnb-optimizer.paged", what, "leave it out, or run on cuda")]
        return []

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """The states of each trainable parameter, scales included."""
        from .states import estimate_states

        return estimate_states(self.config, estimate)

    @hookimpl
    def tunekit_optimizer(
        self,
        bundle: ModelBundle,
        named_parameters: list[tuple[str, Any]],
        settings: OptimizerSettings,
        context: StageContext,
    ) -> Any:
        """Matrices decay; biases, norms and other vectors do not."""
        from .states import make_optimizer

        return make_optimizer(self.config, named_parameters, settings)
