"""Supervised fine-tuning: the model learns to say what the answers in the data say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin
from tunekit.values import Estimate, EstimateRequest, Examples, ModelBundle, StageContext, StageResult
from tunekit_train import TrainConfig

if TYPE_CHECKING:
    from tunekit_train import Rendered


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
        from tunekit_train import Item, train

        from .objective import TokenCrossEntropy

        rendered = self.render(data, bundle.tokenizer)
        items = [Item((sequence,)) for sequence in rendered.sequences]
        result = train(TokenCrossEntropy(), items, bundle, self.config, context)
        left_out = {row.where: row.reason for row in rendered.left_out}
        return replace(result, facts={**result.facts, "left_out": left_out})

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Tokens, padding and memory, from sampled rows and the model's shapes. DataError as the run would raise."""
        from tunekit_train import Item, estimate_stage

        def items(data: Examples) -> list[Item]:
            return [Item((sequence,)) for sequence in self.render(data, estimate.tokenizer).sequences]

        return estimate_stage(self, self.config, request, estimate, items)

    def render(self, data: Examples, tokenizer: Any) -> Rendered:
        """Token ids and loss weights of each example; DataError where one cannot be trained on."""
        from tunekit_train import render_rows

        return render_rows(data, tokenizer, self.config.supervise, self.config.batch.max_length)


__all__ = ["Sft", "SftConfig"]
