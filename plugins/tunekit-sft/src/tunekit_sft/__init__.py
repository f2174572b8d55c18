"""Supervised fine-tuning: the model learns to say what the answers in the data say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin
from tunekit.values import Estimate, EstimateRequest, Examples, ModelBundle, StageContext, StageResult
from tunekit_train import TrainConfig


class SftConfig(TrainConfig):
    """Options of supervised fine-tuning, besides those of every stage."""

    supervise: Literal["assistant", "last", "all"] = Field(
        "assistant", description="tokens with a loss: every assistant turn, the last one only, or all tokens"
    )


class Sft(Plugin[SftConfig]):
    """Supervised fine-tuning on conversations or documents."""

    provides = frozenset({"stage.sft"})

    @hookimpl
    def tunekit_train_stage(self, bundle: ModelBundle, data: Examples, context: StageContext) -> StageResult:
        """Render the examples with the model's own chat template, and train."""
        from tunekit_train import train

        from .objective import TokenCrossEntropy

        return train(TokenCrossEntropy(), self.items(data, bundle.tokenizer), bundle, self.config, context)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Tokens, padding and memory, from the sampled rows and the model's shapes."""
        from tunekit_train import estimate_stage

        return estimate_stage(self, self.config, request, estimate, lambda data: self.attempt(data, estimate.tokenizer))

    def items(self, data: Examples, tokenizer: Any) -> list[Any]:
        """One item per example; DataError where an example cannot be trained on."""
        from tunekit_train import Item, render_all

        sequences = render_all(data, tokenizer, self.config.supervise, self.config.batch.max_length)
        return [Item((sequence,)) for sequence in sequences]

    def attempt(self, data: Examples, tokenizer: Any) -> list[Any]:
        """The items of those examples that can be trained on, for an estimate."""
        from tunekit_train import Item, Sequence, attempt_all

        results = attempt_all(data, tokenizer, self.config.supervise, self.config.batch.max_length)
        return [Item((result,)) for result in results if isinstance(result, Sequence)]


__all__ = ["Sft", "SftConfig"]
