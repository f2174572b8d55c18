"""Adam-mini: AdamW with one learning rate for each attention head, neuron or token, at half of the memory."""

from __future__ import annotations

from typing import Any

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin
from tunekit.values import Estimate, EstimateRequest, ModelBundle, OptimizerSettings, StageContext
from tunekit_train import AdamWConfig

__all__ = ["AdamMini", "AdamMiniConfig"]


class AdamMiniConfig(AdamWConfig):
    """The options of Adam-mini. Learning rate and weight decay are the stage's."""


class AdamMini(Plugin[AdamMiniConfig]):
    """Adam-mini: Use Fewer Learning Rates To Gain More, arXiv 2406.16793."""

    provides = frozenset({"optimizer.adam-mini"})

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """The mean of gradients for each trainable parameter, and of their squares for each unit."""
        from .units import estimate_states

        return estimate_states(request.load.precision.trainable, estimate)

    @hookimpl
    def tunekit_optimizer(
        self,
        bundle: ModelBundle,
        named_parameters: list[tuple[str, Any]],
        settings: OptimizerSettings,
        context: StageContext,
    ) -> Any:
        """Group what trains by the units that share a learning rate; matrices decay, vectors do not."""
        from .units import make_optimizer

        return make_optimizer(self.config, bundle.model, named_parameters, settings)
