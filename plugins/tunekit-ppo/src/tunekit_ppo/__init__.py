"""Proximal policy optimisation on one base model: policy, values, reward and reference are adapters and heads on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.values import (
    Estimate,
    EstimateRequest,
    Examples,
    Kind,
    Machine,
    ModelBundle,
    Plan,
    Prepared,
    StageContext,
    StageResult,
)
from tunekit_train import Objective, Stage

from .options import KlConfig, PpoConfig, RewardConfig, RolloutConfig

if TYPE_CHECKING:
    from tunekit_train import Rules


class Ppo(Stage[PpoConfig]):
    """Proximal policy optimisation: the model answers, rewards value the answers, and it learns from them."""

    kinds: ClassVar[frozenset[Kind]] = frozenset({"conversation", "preference", "labelled", "text"})
    provides = frozenset({"stage.ppo", "stage.rewarded"})
    conflicts = frozenset({"embedding.noise"})  # an answer's probability would not be the one it was sampled with

    def objective(self) -> Objective:
        """Clipped policy and value losses."""
        from .objective import ProximalPolicy

        options = self.config
        return ProximalPolicy(
            options.clip,
            options.value_clip,
            options.value_coefficient,
            options.entropy_coefficient,
            options.rollout.temperature,
        )

    def rules(self) -> Rules:
        """What a prompt may be: as long as leaves room for an answer."""
        rules = super().rules()
        return replace(rules, max_length=self.config.batch.max_length - self.config.rollout.max_new_tokens)

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Find a stage without a reward, and options that cannot be."""
        from .checks import problems

        yield from super().tunekit_check(plan, machine)
        yield from problems(self, plan)

    @hookimpl
    def tunekit_prepare_data(self, data: Examples, tokenizer: Any, context: StageContext) -> Prepared:
        """Take the prompts of the examples."""
        from tunekit_train import prepare_prompts

        return prepare_prompts(data, tokenizer, self.rules(), context, self.kinds)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Tokens and memory, of prompts with the longest answers there can be."""
        from .estimate import estimate_ppo

        return estimate_ppo(self, request, estimate)

    @hookimpl
    def tunekit_train_stage(self, bundle: ModelBundle, data: Prepared, context: StageContext) -> StageResult:
        """Answer, value, learn, over and over."""
        from tunekit_train import train

        from .rollouts import Rollouts

        context = self.config.seeded(context)
        return train(self.objective(), Rollouts(data, self.config, self.rules(), context), bundle, self.config, context)


__all__ = ["KlConfig", "Ppo", "PpoConfig", "RewardConfig", "RolloutConfig"]
