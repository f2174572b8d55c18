"""Schedule-free AdamW: the rate never falls, and the weights that count are an average of those that were trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import (
    Estimate,
    EstimateRequest,
    Machine,
    ModelBundle,
    OptimizerSettings,
    Plan,
    StageContext,
)

__all__ = ["ScheduleFree", "ScheduleFreeConfig"]


class ScheduleFreeConfig(PluginConfig):
    """The options of schedule-free AdamW. Learning rate, warm-up and weight decay are the stage's."""

    beta1: float = Field(
        0.9, gt=0, lt=1, description="share of the average in the point where gradients are taken; 0.95 for long runs"
    )
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the mean of squared gradients, per step")
    eps: float = Field(1e-8, gt=0, description="added to the root of the squared mean")
    power: float = Field(0.0, ge=0, description="later steps weigh more in the average: as (number of the step)^power")
    rate_power: float = Field(
        2.0, ge=0, description="steps of the warm-up weigh less in the average: as (learning rate)^rate_power"
    )


class ScheduleFree(Plugin[ScheduleFreeConfig]):
    """The Road Less Scheduled, arXiv 2405.15682: AdamW that needs no schedule, by averaging."""

    provides = frozenset({"optimizer.schedule-free"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a schedule that the recipe asks for and that falls."""
        from .rates import falling

        return falling(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Another set of weights and the mean of squared gradients, for each trainable parameter."""
        from tunekit_train.estimate import adamw_estimate

        return adamw_estimate(request, estimate)

    @hookimpl
    def tunekit_optimizer(
        self,
        bundle: ModelBundle,
        named_parameters: list[tuple[str, Any]],
        settings: OptimizerSettings,
        context: StageContext,
    ) -> Any:
        """Matrices decay; biases, norms and other vectors do not."""
        from .optimizer import make_optimizer

        return make_optimizer(self.config, named_parameters, settings)

    @hookimpl
    def tunekit_train_schedule(
        self, factor: Callable[[int], float], total_steps: int, context: StageContext
    ) -> Callable[[int], float]:
        """Rise as the stage's schedule does, and never fall."""
        from .rates import highest_so_far

        return highest_so_far(factor)
