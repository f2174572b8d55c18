"""AdamW whose states are 8 or 4 bits wide, through torchao."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin
from tunekit.values import Estimate, EstimateRequest, Machine, ModelBundle, OptimizerSettings, Plan, StageContext
from tunekit_train import AdamWConfig

__all__ = ["States", "TorchaoOptimizer", "TorchaoOptimizerConfig"]

States = Literal["8bit", "4bit", "fp8"]
"""How states are stored: in 256 or 16 values, or as 8-bit floats; each with a scale for a block of numbers."""

BLOCK: dict[str, int] = {"8bit": 256, "4bit": 128, "fp8": 256}
"""Numbers that share a scale, where `block` does not say."""


class TorchaoOptimizerConfig(AdamWConfig):
    """The options of torchao's AdamW. Learning rate and weight decay are the stage's."""

    states: States = Field("8bit", description="how moments are stored: 8bit, 4bit or fp8 (e4m3)")
    block: int | None = Field(
        None, ge=2, multiple_of=2, description="numbers that share a scale; default 256, with 4bit 128"
    )
    stochastic_rounding: bool = Field(
        False, description="round weights in bfloat16 up or down at random, so that small steps are not lost"
    )
    compile: bool = Field(
        False, description="compile a step: one kernel for each shape, faster on accelerators; takes a compiler"
    )


class TorchaoOptimizer(Plugin[TorchaoOptimizerConfig]):
    """AdamW with states of 8 bits (arXiv 2110.02861) or 4 bits (arXiv 2309.01507), through torchao."""

    provides = frozenset({"optimizer.torchao"})

    @property
    def conflicts(self) -> frozenset[str]:
        """Several processes would round their copies of a weight apart."""
        return frozenset({"processes"}) if self.config.stochastic_rounding else frozenset()

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse stochastic rounding of what is not rounded."""
        trainable = plan.precision.trainable
        if not self.config.stochastic_rounding or trainable == "bfloat16":
            return []
        what = f"is true, and what trains is {trainable}, which is not rounded"
        remedy = "leave it out, or train in bf16 (use.precision)"
        return [Problem("use.torchao-optimizer.stochastic_rounding", what, remedy)]

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Two moments for each trainable parameter, scales included."""
        from .states import estimate_states

        return estimate_states(self.config, request.load.precision.trainable, estimate)

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
