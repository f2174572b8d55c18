"""GaLore: all weights train, but Adam's moments of the large ones live in a subspace of small rank."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.options import Targets
from tunekit.plugin import Plugin
from tunekit.values import Estimate, EstimateRequest, ModelBundle, OptimizerSettings, StageContext
from tunekit_train import AdamWConfig

__all__ = ["Galore", "GaloreConfig", "Projection"]

Projection = Literal["std", "reverse_std", "left", "right"]
"""Which side of a gradient [out in] is projected: the smaller, the larger, out, in."""


class GaloreConfig(AdamWConfig):
    """The options of GaLore. Learning rate and weight decay are the stage's."""

    targets: Targets = Field(
        "all-linear",
        description="which weights are projected: all-linear (every linear layer but the head), a list of names or "
        "parts of names, or a regular expression over the whole names of linear layers; all others train with AdamW",
    )
    rank: int = Field(128, ge=1, description="rank of the subspace, at most the smaller side of each projected weight")
    update_interval: int = Field(200, ge=1, description="steps between two choices of the subspace")
    scale: float = Field(0.25, gt=0, description="factor on the updates of projected weights, the paper's alpha")
    projection: Projection = Field(
        "std",
        description="side that is projected: std the smaller, reverse_std the larger, left: outputs, right: inputs",
    )


class Galore(Plugin[GaloreConfig]):
    """GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, arXiv 2403.03507."""

    provides = frozenset({"optimizer.galore"})
    # Low-rank factors have no rank to save, and quantised weights cannot train.
    conflicts = frozenset({"adapter", "quantization"})

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Two moments for each trainable parameter, of projected ones in the subspace, with its basis."""
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
        """Project the chosen matrices; matrices decay, biases, norms and other vectors do not."""
        from .choosing import make_optimizer

        return make_optimizer(self.config, bundle.model, named_parameters, settings)
