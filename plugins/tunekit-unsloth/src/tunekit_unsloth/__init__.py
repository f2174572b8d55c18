"""Models loaded through unsloth, which patches libraries for a whole process: so the run has a process of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.values import (
    Context,
    Estimate,
    EstimateRequest,
    Launch,
    LoadRequest,
    Machine,
    ModelBundle,
    Plan,
    Processes,
)
from tunekit_transformers import Transformers, TransformersConfig

__all__ = ["Unsloth", "UnslothConfig"]


class UnslothConfig(TransformersConfig):
    """How the model is found and loaded, as by transformers, and what unsloth prepares it for."""

    max_length: int = Field(
        2048,
        ge=2,
        description="tokens of the longest sequence that unsloth prepares the model's positions for, no more than the "
        "model reads",
    )


class Unsloth(Transformers):
    """Model-load through unsloth's FastLanguageModel, the whole run in a child process; all else by transformers."""

    config: UnslothConfig
    provides = frozenset({"model.transformers", "model.unsloth", "backend.transformers"})
    conflicts = frozenset({"processes", "quantization"})

    @classmethod
    def config_type(cls) -> Any:
        """The class of its options, which are those of transformers' loader and more."""
        return UnslothConfig

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a machine without unsloth, and all that it would not do as asked."""
        from tunekit_transformers.sources import under

        from .checks import problems

        yield from (under(problem, "unsloth") for problem in super().tunekit_check(plan, machine))
        yield from problems(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Estimate as transformers' loader does; refuse a length at which unsloth would scale positions."""
        from .checks import refuse_scaling

        estimate = super().tunekit_estimate(request, estimate)
        refuse_scaling(self.config.max_length, estimate.skeleton.config)
        return estimate

    @hookimpl
    def tunekit_launch(self, plan: Plan, launch: Launch) -> Processes | None:
        """Start one child and wait for it; as that child, carry the run out."""
        from .launching import work

        return work(launch, plan.precision.device)

    @hookimpl
    def tunekit_load_model(self, request: LoadRequest, context: Context) -> ModelBundle:
        """Load through unsloth where this is the child, with transformers elsewhere: the weights are the same.

        A process that has not imported unsloth is not the run's own child: it only asks, and is not to be patched.
        """
        from .loading import is_child, load

        if not is_child():
            return super().tunekit_load_model(request=request, context=context)
        return load(self.config.max_length, self._options(), request, context)
