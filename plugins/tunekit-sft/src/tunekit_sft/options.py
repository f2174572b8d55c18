"""The options of both stages, and which of them go together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunekit_train import ConversationConfig, TrainConfig

LossName = Literal["cross_entropy", "dft"]


class SftConfig(ConversationConfig):
    """Options of supervised fine-tuning, besides those of every stage on conversations."""

    supervise: Literal["assistant", "last", "all"] = Field(
        "assistant", description="tokens with a loss: every assistant turn, the last one only, or all tokens"
    )
    loss: LossName = Field(
        "cross_entropy", description="-log p of each token, or dft: the same times p, through which no gradient flows"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each target that is spread evenly over the vocabulary"
    )
    token_accuracy: bool = Field(
        False, description="tell the share of supervised tokens that the model holds for the likeliest"
    )

    @model_validator(mode="after")
    def _go_together(self) -> SftConfig:
        """Refuse smoothed targets for a loss that has none."""
        if self.label_smoothing and self.loss == "dft":
            raise ValueError("label_smoothing acts only with loss cross_entropy; leave it out, or take that loss")
        return self


class PretrainConfig(TrainConfig):
    """Options of training on documents, besides those of every stage."""

    block: int | None = Field(None, ge=2, description="tokens of a block; unset: batch.max_length")
    cross_documents: bool = Field(
        False, description="let attention cross from one document into the next inside a block"
    )

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.batch.max_length if self.block is None else self.block

    @model_validator(mode="after")
    def _go_together(self) -> PretrainConfig:
        """Refuse blocks past the limit, and what can be done about documents that are never too long."""
        if self.block_size > self.batch.max_length:
            raise ValueError(f"block is {self.block}, and batch.max_length {self.batch.max_length}; raise the latter")
        if self.batch.too_long != "cut":
            raise ValueError("batch.too_long acts on no document here, since none is too long for blocks; leave it out")
        return self
