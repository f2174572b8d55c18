"""Learning from the model's own answers by TRL's trainers: GRPO and RLOO, with rewards from plugins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin
from tunekit.values import (
    Estimate,
    EstimateRequest,
    Examples,
    Machine,
    ModelBundle,
    Plan,
    Prepared,
    StageContext,
    StageResult,
)
from tunekit_train.hooks import TrainHooks

from .options import GrpoConfig, OnlineConfig, RlooConfig

Config = TypeVar("Config", bound=OnlineConfig)


class OnlineStage(Plugin[Config]):
    """A stage that one of TRL's trainers trains, on prompts, for the rewards of all planned plugins.

    `source` is the module of TRL's config class, and its name.
    """

    source: ClassVar[tuple[str, str]]
    hookspecs = (TrainHooks,)

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Find options that TRL's trainer cannot honour, and rewards that are missing."""
        from .checks import problems

        return problems(self, plan)

    @hookimpl
    def tunekit_prepare_data(self, data: Examples, tokenizer: Any, context: StageContext) -> Prepared:
        """Take the prompts: conversations up to the last answer, documents as they are."""
        from tunekit_train import Rules
        from tunekit_train.prompts import prepare_prompts

        batch = self.config.batch
        rules = Rules(max_length=batch.max_length, too_long=batch.too_long)
        return prepare_prompts(data, tokenizer, rules, context)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Tokens and memory, were all answers as long as they may be."""
        from .estimate import estimate_online

        return estimate_online(self, request, estimate)

    @hookimpl
    def tunekit_train_stage(self, bundle: ModelBundle, data: Prepared, context: StageContext) -> StageResult:
        """Train with TRL."""
        from .training import train

        return train(self, data, bundle, context)


class Grpo(OnlineStage[GrpoConfig]):
    """Group relative policy optimisation: answers are judged by the others to their prompt (arXiv 2402.03300)."""

    provides = frozenset({"stage.grpo", "stage.rewarded"})
    source = ("grpo_config", "GRPOConfig")


class Rloo(OnlineStage[RlooConfig]):
    """REINFORCE leave-one-out: the mean reward of the other answers is each answer's baseline (arXiv 2402.14740)."""

    provides = frozenset({"stage.rloo", "stage.rewarded"})
    source = ("rloo_config", "RLOOConfig")


__all__ = ["Grpo", "GrpoConfig", "Rloo", "RlooConfig"]
