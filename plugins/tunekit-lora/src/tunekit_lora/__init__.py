"""Low-rank adapters: the base stays frozen, each chosen layer learns an update of small rank."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.options import Targets
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Context, Estimate, EstimateRequest, LoadRequest, Machine, ModelBundle, Plan, Report

from .hooks import LoraHooks
from .patterns import readable

__all__ = ["Lora", "LoraConfig", "LoraHooks", "Stack", "StackConfig"]

Pattern = Annotated[str, AfterValidator(readable)]
Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0)]


class LoraConfig(PluginConfig):
    """The options of LoRA."""

    targets: Targets = Field(
        "all-linear",
        description="which layers get an adapter: all-linear (every linear layer but the head), a list of names, a "
        "regular expression over the whole names of linear layers, or none, where parameters are named",
    )
    rank: int = Field(8, ge=1, description="rank of the update, at most the smaller side of each layer")
    alpha: float | None = Field(
        None,
        gt=0,
        description="the update is scaled by alpha/rank (rslora: alpha/sqrt(rank)); default 2*rank, with rslora 16",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the update while training, 0 to 1")
    rslora: bool = Field(False, description="scale by alpha/sqrt(rank), which keeps large ranks learning")
    rank_pattern: dict[Pattern, Rank] = Field(
        {},
        description="other ranks for some of the targets, by the last parts of their names or by a regular expression "
        "for these; the first that fits counts",
    )
    alpha_pattern: dict[Pattern, Alpha] = Field(
        {}, description="other alphas for some of the targets, named as in rank_pattern"
    )
    layers: tuple[int, ...] = Field(
        (),
        description="numbers of the model's layers, from 0 and with negative ones from the end: targets inside other "
        "layers get no adapter; none: inside all",
    )
    parameters: tuple[str, ...] = Field(
        (),
        description="parameters that are no linear layer's and get an update of their own, by whole names or last "
        "parts, such as the fused experts mlp.experts.down_proj",
    )
    tokens: tuple[str, ...] = Field(
        (), description="tokens, as they are written, whose rows of the embedding train, and of a head that is tied"
    )
    modules_to_save: tuple[str, ...] = Field((), description="names of modules trained whole, saved with the adapter")

    @model_validator(mode="after")
    def _something_trains(self) -> LoraConfig:
        if self.targets == "none" and not self.parameters:
            raise ValueError("targets is none and parameters is empty, so no update would train; name some")
        if self.parameters and self.dropout:
            raise ValueError("dropout cannot act on the update of parameters; leave dropout or parameters out")
        return self

    @property
    def scale_numerator(self) -> float:
        """The alpha in use: what was asked, else one that keeps the scale the same as the rank changes."""
        return self.alpha_for(self.rank)

    def alpha_for(self, rank: int) -> float:
        """The alpha of a layer of this rank for which no pattern says another."""
        if self.alpha is not None:
            return self.alpha
        return 16.0 if self.rslora else 2.0 * rank


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


class StackConfig(PluginConfig):
    """The options of stacking."""

    adapter: Path = Field(description="folder of a saved LoRA adapter, in PEFT's format, for the model as it is named")


class Stack(Plugin[StackConfig]):
    """A fresh LoRA on top of a saved one, which is added into the weights whenever the model is loaded."""

    requires = frozenset({"adapter.lora"})
    provides = frozenset({"adapter.stacked", "base.changed"})
    after = frozenset({"vocabulary"})  # the adapter may have learnt rows of new tokens, which have to be there
    # A sum that is rounded to 4 bits again loses most of the adapter; and weights that train are saved as a whole
    # model, into which the adapter would be added once more when it is opened.
    conflicts = frozenset({"quantization", "weights"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a folder that holds no LoRA adapter."""
        from .stacking import stack_problems

        return stack_problems(self.config.adapter, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse an adapter of all rows of an embedding or head that is to get more."""
        from .stacking import refuse_all_rows

        refuse_all_rows(self.config.adapter, request.plan, estimate.skeleton)
        return estimate

    @hookimpl
    def tunekit_before_load(self, request: LoadRequest, context: Context) -> LoadRequest:
        """Where the adapter is gone, take the copy that the run has kept of it."""
        from .stacking import take_copy

        return take_copy(request, self.config.adapter, context.folder)

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Add the saved adapter, and those that it stands on itself, into the weights."""
        from .stacking import merge_

        return merge_(bundle.model, self.config.adapter)

    @hookimpl
    def tunekit_lora_saved(self, folder: Path, model: Any) -> Path:
        """Keep a copy of what the fresh adapter stands on, for whoever loads it."""
        from .named import bare
        from .stacking import keep

        return keep(folder, bare(model))
