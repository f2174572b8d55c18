"""BAdam: all weights train, but one block of layers at a time, with gradients and Adam's moments of that block only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin
from tunekit.values import Estimate, EstimateRequest, ModelBundle, OptimizerSettings, StageContext
from tunekit_train import AdamWConfig

__all__ = ["Badam", "BadamConfig", "Order"]

Order = Literal["ascending", "descending", "random"]
"""In which order blocks take turns: from the embedding up, from the head down, or in another order in each round."""


class BadamConfig(AdamWConfig):
    """The options of BAdam. Learning rate and weight decay are the stage's."""

    switch_every: int = Field(50, ge=1, description="steps that a block trains before the next one does")
    order: Order = Field(
        "random",
        description="which block is next: ascending from the embedding up, descending from the head down, random: "
        "each once in a round, in another order in each",
    )
    layers: int = Field(1, ge=1, description="layers in a block; the embedding, and norm with head, are blocks too")


class Badam(Plugin[BadamConfig]):
    """BAdam: A Memory Efficient Full Parameter Optimization Method for LLMs, arXiv 2404.02827."""

    provides = frozenset({"optimizer.badam"})
    # An adapter has little to save, quantised weights cannot train, and other processes would wait for the gradients
    # of all weights.
    conflicts = frozenset({"adapter", "quantization", "processes"})

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Two moments, and gradients, of the largest block."""
        from .blocks import estimate_block

        return estimate_block(self.config, request.load.precision.trainable, estimate)

    @hookimpl
    def tunekit_optimizer(
        self,
        bundle: ModelBundle,
        named_parameters: list[tuple[str, Any]],
        settings: OptimizerSettings,
        context: StageContext,
    ) -> Any:
        """AdamW over one block after the other; matrices decay, biases, norms and other vectors do not."""
        from .optimizer import make_optimizer

        return make_optimizer(self.config, bundle.model, named_parameters, settings, context.seed)

    @hookimpl
    def tunekit_train_callbacks(self, callbacks: tuple[Any, ...], context: StageContext) -> tuple[Any, ...]:
        """Ask for gradients of the current block alone while a step is computed."""
        from .switching import OneBlock

        return (*callbacks, OneBlock())
