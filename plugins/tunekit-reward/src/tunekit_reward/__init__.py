"""Reward models: a value head that learns to value the better of two answers higher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.values import Context, Examples, Kind, ModelBundle, Prepared, Prompt, StageContext
from tunekit_train import ConversationConfig, Objective, Stage


class RewardConfig(ConversationConfig):
    """Options of reward models, besides those of every stage on conversations."""

    learning_rate: float = Field(default=1e-4, gt=0, description="the highest learning rate of the schedule")
    margin_weight: float = Field(
        default=1.0, ge=0, description="how much of the margin that the data gives a reward difference must exceed"
    )
    centring: float = Field(
        default=0.0, ge=0, description="weight of (chosen + rejected reward)^2, which holds rewards around 0"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="the chance that a pair is the wrong way round"
    )


class Reward(Stage[RewardConfig]):
    """A reward model: Bradley-Terry on a value head, saved with the adapter."""

    kinds: ClassVar[frozenset[Kind]] = frozenset({"preference"})
    provides = frozenset({"stage.reward"})

    def objective(self) -> Objective:
        """Chosen answers are valued above rejected ones."""
        from .objective import RewardModel

        options = self.config
        return RewardModel(options.margin_weight, options.centring, options.label_smoothing)

    @hookimpl
    def tunekit_prepare_data(self, data: Examples, tokenizer: Any, context: StageContext) -> Prepared:
        """Encode the pairs; where `margin_weight` was set, some of them give a margin."""
        from tunekit_train.preparing import with_margins

        prepared = super().tunekit_prepare_data(data, tokenizer, context)
        return with_margins(prepared, self.config.margin_weight, context.key)

    @hookimpl
    def tunekit_score(self, bundle: ModelBundle, texts: Sequence[Prompt], context: Context) -> list[float]:
        """The value head on the last token of each."""
        from .scoring import score

        return score(bundle, texts, replace(self.rules(), too_long="cut"))


__all__ = ["Reward", "RewardConfig"]
