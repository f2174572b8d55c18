"""The training engine that every stage shares: objectives, options, and AdamW. Importing it imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import (
    Estimate,
    EstimateRequest,
    Item,
    ModelBundle,
    OptimizerSettings,
    StageContext,
    TokenSequence,
)

from .config import (
    BatchConfig,
    CheckpointConfig,
    ComputeConfig,
    ConversationConfig,
    EarlyStoppingConfig,
    EvaluateConfig,
    LogConfig,
    ScheduleConfig,
    TrainConfig,
)
from .hooks import TrainHooks
from .objective import Batch, Metric, Need, Objective, Provided, Source, Sum, Sums
from .stage import Stage

if TYPE_CHECKING:
    from .encoding import Encoder, Rules
    from .engine import train
    from .estimate import estimate_stage
    from .forward import Forward
    from .heads import ValueHead
    from .items import Items
    from .job import Job
    from .layout import Layout
    from .needs import ReferenceLogProbs, SequenceValues, TokenLogProbs, TokenValues
    from .order import BatchOrder
    from .prompts import Asked, Prompts, prepare_prompts
    from .scores import TokenScores

_LAZY = {
    "Asked": "prompts",
    "BatchOrder": "order",
    "Encoder": "encoding",
    "Forward": "forward",
    "Items": "items",
    "Job": "job",
    "Layout": "layout",
    "ReferenceLogProbs": "needs",
    "Prompts": "prompts",
    "Rules": "encoding",
    "SequenceValues": "needs",
    "TokenLogProbs": "needs",
    "TokenScores": "scores",
    "TokenValues": "needs",
    "ValueHead": "heads",
    "estimate_stage": "estimate",
    "prepare_prompts": "prompts",
    "train": "engine",
}


class AdamWConfig(PluginConfig):
    """Options of AdamW. Learning rate and weight decay are the stage's."""

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean of gradients, per step")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the mean of squared gradients, per step")
    eps: float = Field(1e-8, gt=0, description="added to the root of the squared mean")


class AdamW(Plugin[AdamWConfig]):
    """AdamW: Decoupled Weight Decay Regularization, arXiv:1711.05101. The default optimiser."""

    provides = frozenset({"optimizer.adamw", "optimizer.elementwise"})

    @hookimpl
    def tunekit_optimizer(
        self,
        bundle: ModelBundle,
        named_parameters: list[tuple[str, Any]],
        settings: OptimizerSettings,
        context: StageContext,
    ) -> Any:
        """Matrices decay; biases, norms and other vectors do not."""
        from .adamw import make_adamw

        betas = (self.config.beta1, self.config.beta2)
        return make_adamw(named_parameters, settings.learning_rate, settings.weight_decay, betas, self.config.eps)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Two moments for each trainable parameter, in its dtype."""
        from .estimate import adamw_estimate

        return adamw_estimate(request, estimate)


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


__all__ = [
    "AdamW",
    "AdamWConfig",
    "Asked",
    "Batch",
    "BatchConfig",
    "BatchOrder",
    "CheckpointConfig",
    "ComputeConfig",
    "ConversationConfig",
    "EarlyStoppingConfig",
    "Encoder",
    "EvaluateConfig",
    "Forward",
    "Item",
    "Items",
    "Job",
    "Layout",
    "LogConfig",
    "Metric",
    "Need",
    "Objective",
    "Prompts",
    "Provided",
    "ReferenceLogProbs",
    "Rules",
    "ScheduleConfig",
    "SequenceValues",
    "Source",
    "Stage",
    "Sum",
    "Sums",
    "TokenLogProbs",
    "TokenScores",
    "TokenSequence",
    "TokenValues",
    "TrainConfig",
    "TrainHooks",
    "ValueHead",
    "estimate_stage",
    "prepare_prompts",
    "train",
]
