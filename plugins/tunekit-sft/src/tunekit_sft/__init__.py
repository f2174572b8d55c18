"""Supervised fine-tuning: the model learns to say what the answers in the data say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunekit_train import ConversationConfig, Objective, Stage

if TYPE_CHECKING:
    from tunekit_train import Rules


class SftConfig(ConversationConfig):
    """Options of supervised fine-tuning, besides those of every stage."""

    supervise: Literal["assistant", "last", "all"] = Field(
        "assistant", description="tokens with a loss: every assistant turn, the last one only, or all tokens"
    )


class Sft(Stage[SftConfig]):
    """Supervised fine-tuning on conversations or documents."""

    provides = frozenset({"stage.sft"})

    def objective(self) -> Objective:
        """Cross-entropy over the supervised tokens."""
        from .objective import TokenCrossEntropy

        return TokenCrossEntropy()

    def rules(self) -> Rules:
        """A loss on the answers that `supervise` names."""
        return replace(super().rules(), supervise=self.config.supervise)


__all__ = ["Sft", "SftConfig"]
