"""What every stage on this engine shares: subclass it, and say what it trains on and what it trains for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin
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

from .config import ConversationConfig, TrainConfig
from .hooks import TrainHooks
from .objective import Objective

if TYPE_CHECKING:
    from .encoding import Rules

Config = TypeVar("Config", bound=TrainConfig)


class Stage(Plugin[Config]):
    """A training stage made of an objective.

    `kinds` are the kinds of examples it trains on; a row of another kind stops the plan. `rules` says how examples
    become tokens, `objective` what is trained for. Everything else is the engine's.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({"conversation", "text"})
    hookspecs = (TrainHooks,)

    @abstractmethod
    def objective(self) -> Objective:
        """Make what this stage trains for."""

    def rules(self) -> Rules:
        """How examples become tokens: which of them have a loss, and what becomes of those that are too long."""
        from .encoding import Rules

        batch = self.config.batch
        thinking = self.config.thinking if isinstance(self.config, ConversationConfig) else "keep"
        return Rules(thinking=thinking, max_length=batch.max_length, too_long=batch.too_long)

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Find options that contradict each other or the way the data is read."""
        from .checks import problems

        return problems(self, plan, machine)

    @hookimpl
    def tunekit_prepare_data(self, data: Examples, tokenizer: Any, context: StageContext) -> Prepared:
        """Encode the examples with the model's own chat template."""
        from .preparing import prepare

        return prepare(data, tokenizer, self.rules(), self.kinds, self.config.seeded(context))

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Tokens, padding and memory, from sampled rows and the model's shapes."""
        from .estimate import estimate_stage

        return estimate_stage(self, self.config, request, estimate)

    @hookimpl
    def tunekit_train_stage(self, bundle: ModelBundle, data: Prepared, context: StageContext) -> StageResult:
        """Train for the objective."""
        from .engine import train

        return train(self.objective(), data, bundle, self.config, context)
