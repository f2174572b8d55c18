"""Mixtures of experts: a loss that keeps them evenly used, beside whatever a stage trains for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, Machine, ModelBundle, Plan, Report, StageContext
from tunekit_train import Objective

__all__ = ["Moe", "MoeConfig"]


class MoeConfig(PluginConfig):
    """The options of a mixture's training."""

    router_loss: float | None = Field(
        None,
        gt=0,
        description="weight of the load-balancing loss in the loss of a step; none: what the model's own config says "
        "(router_aux_loss_coef)",
    )


class Moe(Plugin[MoeConfig]):
    """The load-balancing loss of a mixture of experts (Switch Transformers, arXiv 2101.03961), with any objective."""

    provides = frozenset({"objective.router"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse stages whose loss is another library's."""
        from .checks import foreign_stages

        return foreign_stages(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse a model without a router; say what micro-batches do to the loss."""
        from .checks import notes, refuse_without_router

        if estimate.skeleton is not None:
            refuse_without_router(estimate.skeleton, self.config.router_loss)
        return replace(estimate, notes=(*estimate.notes, *notes(request.plan)))

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """See that the model has a router. Nothing is changed: the loss is the objective's."""
        from .checks import refuse_without_router

        weight = refuse_without_router(bundle.model, self.config.router_loss)
        return Report(f"the load-balancing loss counts {weight:g}", {"router_loss": weight}, lambda: None)

    @hookimpl
    def tunekit_train_objective(self, objective: Objective, context: StageContext) -> Objective:
        """Add the load-balancing loss to whatever the stage trains for."""
        from .objective import Balanced

        return Balanced(objective, self.config.router_loss)
