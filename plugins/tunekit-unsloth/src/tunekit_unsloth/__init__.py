"""Models loaded through unsloth, which patches libraries for a whole process: so the run has a process of its own."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Context, Launch, LoadRequest, Machine, ModelBundle, Plan, Processes

__all__ = ["Unsloth", "UnslothConfig"]


class UnslothConfig(PluginConfig):
    """How unsloth loads the model."""

    max_length: int = Field(
        2048, ge=2, description="tokens of the longest sequence that unsloth prepares the model's positions for"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a model on the hub; none: its default")
    trust_remote_code: bool = Field(False, description="run Python code that the model's repository brings with it")


class Unsloth(Plugin[UnslothConfig]):
    """Model-load through unsloth's FastLanguageModel, the whole run in a child process."""

    provides = frozenset({"model.unsloth"})
    conflicts = frozenset({"processes", "quantization"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a machine without unsloth, and sequences longer than it is told to prepare for."""
        from .checks import problems

        return problems(self, plan)

    @hookimpl
    def tunekit_launch(self, plan: Plan, launch: Launch) -> Processes | None:
        """Start one child and wait for it; as that child, carry the run out."""
        from .launching import work

        return work(launch, plan.precision.device)

    @hookimpl
    def tunekit_load_model(self, request: LoadRequest, context: Context) -> ModelBundle:
        """Load through unsloth where this is the child, with transformers elsewhere: the weights are the same."""
        from .loading import load

        return load(self.config, request, context)
