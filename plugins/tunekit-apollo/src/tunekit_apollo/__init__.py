"""APOLLO: all weights train, and a random sketch of each gradient says how far a column or a matrix moves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.options import Targets
from tunekit.plugin import Plugin
from tunekit.values import Estimate, EstimateRequest, ModelBundle, OptimizerSettings, StageContext
from tunekit_train import AdamWConfig

__all__ = ["Apollo", "ApolloConfig", "Granularity"]

Granularity = Literal["channel", "tensor"]
"""What shares one step size: each channel of the larger side of a matrix, or the whole matrix."""


class ApolloConfig(AdamWConfig):
    """The options of APOLLO. Learning rate and weight decay are the stage's."""

    targets: Targets = Field(
        "all-linear",
        description="which weights are sketched: all-linear (every linear layer but the head), a list of names or "
        "parts of names, or a regular expression over the whole names of linear layers; all others train with AdamW",
    )
    rank: int = Field(128, ge=1, description="rank of the sketch, at most the smaller side of each sketched weight")
    update_interval: int = Field(200, ge=1, description="steps between two draws of the random projection")
    scale: float = Field(
        1.0, gt=0, description="the updates of sketched weights are multiplied by its square root; APOLLO-Mini uses 128"
    )
    granularity: Granularity = Field(
        "channel", description="what shares a step size: channel, or tensor, which is enough with rank 1 (APOLLO-Mini)"
    )
    growth_limit: float | None = Field(
        1.01,
        gt=1,
        description="how many times larger than the last an update may be, by its norm; null: no limit",
    )


class Apollo(Plugin[ApolloConfig]):
    """APOLLO: SGD-like Memory, AdamW-level Performance, arXiv 2412.05270."""

    provides = frozenset({"optimizer.apollo"})
    # Low-rank factors have no rank to save, and quantised weights cannot train.
    conflicts = frozenset({"adapter", "quantization"})

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Two moments for each trainable parameter, of sketched ones of the sketch; the projection is not kept."""
        from .choosing import estimate_states

        return estimate_states(self.config, request.load.precision.trainable, estimate)

    @hookimpl
    def tunekit_optimizer(
        self,
        bundle: ModelBundle,
        named_parameters: list[tuple[str, Any]],
        settings: OptimizerSettings,
        context: StageContext,
    ) -> Any:
        """Sketch the chosen matrices; matrices decay, biases, norms and other vectors do not."""
        from .choosing import make_optimizer

        return make_optimizer(self.config, bundle.model, named_parameters, settings, context.seed)
