"""Kahneman-Tversky optimisation: learning from single answers that are called good or bad."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from tunekit.errors import DataError, Problem
from tunekit.hooks import hookimpl
from tunekit.values import Examples, Kind, Machine, Plan, Prepared, StageContext
from tunekit_train import ConversationConfig, Objective, Stage


class KtoConfig(ConversationConfig):
    """Options of KTO, besides those of every stage on conversations."""

    learning_rate: float = Field(default=1e-5, gt=0, description="the highest learning rate of the schedule")
    beta: float = Field(
        default=0.1,
        gt=0,
        description="how strongly the policy is held to the reference: rewards are beta times log-ratios",
    )
    loss: Literal["kto", "apo_zero_unpaired"] = Field(
        default="kto", description="kto compares rewards with an estimate of the KL divergence, the other with 0"
    )
    desirable_weight: float = Field(default=1.0, ge=0, description="weight of the loss of answers called good")
    undesirable_weight: float = Field(default=1.0, ge=0, description="weight of the loss of answers called bad")

    @model_validator(mode="after")
    def _some_answers_count(self) -> KtoConfig:
        """Refuse a loss that is zero everywhere."""
        if not self.desirable_weight and not self.undesirable_weight:
            raise ValueError("desirable_weight and undesirable_weight are both 0: no answer would have a loss")
        return self


class Kto(Stage[KtoConfig]):
    """Kahneman-Tversky optimisation on answers called good or bad, against the policy at the start of the stage."""

    kinds: ClassVar[frozenset[Kind]] = frozenset({"labelled"})
    provides = frozenset({"stage.kto"})

    def objective(self) -> Objective:
        """The loss that `loss` names."""
        from .objective import KlAnchored, ZeroAnchored

        options = self.config
        kind = KlAnchored if options.loss == "kto" else ZeroAnchored
        return kind(options.beta, options.desirable_weight, options.undesirable_weight)

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """The KL term pairs each prompt with an answer to any other, so it must know all of them."""
        yield from super().tunekit_check(plan, machine)
        for stage in plan.stages:
            if stage.plugin.plugin is self and stage.mixing.streaming and self.config.loss == "kto":
                what = "is kto, which pairs each prompt with the answer to any other, and the data is streamed"
                yield Problem(f"{stage.key}.loss", what, "use apo_zero_unpaired, or stream nothing")

    @hookimpl
    def tunekit_prepare_data(self, data: Examples, tokenizer: Any, context: StageContext) -> Prepared:
        """Encode the examples, and put beside each answer one that does not belong to its prompt, for the KL term."""
        context = self.config.seeded(context)
        from .weighing import check_weights

        prepared: Prepared = super().tunekit_prepare_data(data, tokenizer, context)
        check_weights(self.config.desirable_weight, self.config.undesirable_weight, prepared, context.key)
        if self.config.loss != "kto":
            return prepared
        from tunekit_train.items import IndexedItems
        from tunekit_train.order import split

        from .mismatch import MismatchedItems

        assert isinstance(prepared, IndexedItems), "streamed data is refused when the run is planned"
        training, _ = split(len(prepared), self.config.evaluate.share, context.seed)
        made = MismatchedItems(prepared, context.seed, self.config.batch.max_length, training)
        if made.prompts == 1 and prepared.fingerprint:  # a sample has none
            what = "is trained on with one prompt alone, and the KL term of kto needs answers to other prompts"
            raise DataError([Problem(f"{context.key}.data", what, "give more data, or use loss: apo_zero_unpaired")])
        return made


__all__ = ["Kto", "KtoConfig"]
