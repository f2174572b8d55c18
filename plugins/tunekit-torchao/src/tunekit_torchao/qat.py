"""Training that expects its weights to be rounded afterwards."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, ModelBundle, Report

__all__ = ["Qat", "QatConfig"]


class QatConfig(PluginConfig):
    """The options of quantisation-aware training."""

    kind: Literal["int4", "int4-dynamic"] = Field(
        "int4", description="what the weights will be rounded to; int4-dynamic: what goes into a layer too, to 8 bits"
    )
    group: int = Field(32, ge=8, description="weights of a row that share a scale; at least 8, a divisor of every row")
    skip: tuple[str, ...] = Field((), description="layers that are not rounded, by name or start of name")


class Qat(Plugin[QatConfig]):
    """Quantisation-aware training (arXiv 1712.05877): all products see the weights as they will be rounded."""

    provides = frozenset({"weights.rounded"})
    # An adapter's part would be added to the rounded weight, and once merged be rounded with it: another model.
    conflicts = frozenset({"adapter", "quantization"})

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Round in the skeleton as well, so that the rounded copies are counted among the activations."""
        from .rounding import prepare_

        prepare_(self.config, estimate.skeleton)
        return estimate

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Round the weights of every linear layer but the head in each forward; gradients pass as if it had not."""
        from .rounding import prepare_, undo_

        layers = prepare_(self.config, bundle.model)
        summary = f"{len(layers)} linear layers train as they will be rounded to {self.config.kind}"
        return Report(summary, {"layers": len(layers), "kind": self.config.kind}, partial(undo_, bundle.model, layers))
