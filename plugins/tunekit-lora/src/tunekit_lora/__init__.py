"""Low-rank adapters: the base stays frozen, each chosen layer learns an update of small rank."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.options import Targets
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Context, Estimate, EstimateRequest, Machine, ModelBundle, Plan

from .hooks import LoraHooks

__all__ = ["Lora", "LoraConfig", "LoraHooks"]


class LoraConfig(PluginConfig):
    """The options of LoRA."""

    targets: Targets = Field(
        "all-linear",
        description="which layers get an adapter: all-linear (every linear layer but the head), a list of names, or a "
        "regular expression over the whole names of linear layers",
    )
    rank: int = Field(8, ge=1, description="rank of the update, at most the smaller side of each layer")
    alpha: float | None = Field(
        None,
        gt=0,
        description="the update is scaled by alpha/rank (rslora: alpha/sqrt(rank)); default 2*rank, with rslora 16",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the update while training, 0 to 1")
    rslora: bool = Field(False, description="scale by alpha/sqrt(rank), which keeps large ranks learning")
    modules_to_save: tuple[str, ...] = Field((), description="names of modules trained whole, saved with the adapter")

    @property
    def scale_numerator(self) -> float:
        """The alpha in use: what was asked, else one that keeps the scale the same as the rank changes."""
        if self.alpha is not None:
            return self.alpha
        return 16.0 if self.rslora else 2.0 * self.rank


class Lora(Plugin[LoraConfig]):
    """Low-rank adapters through PEFT (LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685)."""

    provides = frozenset({"adapter", "adapter.lora", "adapter.named", "adapter.saved"})
    hookspecs = (LoraHooks,)

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse to begin with a saved adapter that is another than the options ask for."""
        from .starting import start_problems

        return start_problems(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Wrap the skeleton as the run will wrap the model, and count what trains."""
        from .adapter import estimate_adapter

        return estimate_adapter(self, request, estimate)

    @hookimpl
    def tunekit_attach_adapter(self, bundle: ModelBundle, context: Context) -> ModelBundle:
        """Put a fresh adapter on the model, or the saved one where the bundle names it, beside any it carries."""
        from .adapter import attach, reopen, save
        from .named import LoraAdapters

        model: Any = reopen(bundle, context) if bundle.saved_adapter else attach(self.config, bundle, context)
        return bundle.with_model(
            model, adapter="lora", save=partial(save, calls=context.calls), adapters=LoraAdapters()
        )
