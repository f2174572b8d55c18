"""LoRA+: the second factor of a low-rank update learns faster than the first."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin
from tunekit.values import Estimate, EstimateRequest, ModelBundle, OptimizerSettings, StageContext
from tunekit_train import AdamWConfig

__all__ = ["Loraplus", "LoraplusConfig"]


class LoraplusConfig(AdamWConfig):
    """The options of LoRA+. The learning rate of the first factor, and the weight decay, are the stage's."""

    ratio: float = Field(
        16.0, ge=1, description="how many times the stage's learning rate the second factor, B, is trained with"
    )
    embedding_rate: float = Field(
        1e-6, gt=0, description="learning rate of low-rank updates of an embedding; it moves as the stage's does"
    )


class Loraplus(Plugin[LoraplusConfig]):
    """LoRA+: Efficient Low Rank Adaptation of Large Models, arXiv 2402.12354."""

    provides = frozenset({"optimizer.loraplus", "optimizer.elementwise"})
    requires = frozenset({"adapter.lora"})

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Two moments for each trainable parameter, as AdamW."""
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
        """AdamW with a learning rate for each kind of factor; matrices decay, vectors do not."""
        from .rates import make_optimizer

        return make_optimizer(self.config, named_parameters, settings)
