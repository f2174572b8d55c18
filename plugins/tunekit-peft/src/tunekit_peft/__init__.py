"""Every other method of PEFT, by its name and with its own options."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tunekit.errors import Problem, nearest
from tunekit.hooks import hookimpl
from tunekit.options import Targets
from tunekit.plugin import Config, Plugin, PluginConfig
from tunekit.values import Context, Estimate, EstimateRequest, Machine, ModelBundle, Plan

from .methods import METHODS, REFUSED, Method, Request

__all__ = ["METHODS", "REFUSED", "Method", "MethodPlugin", "Peft", "PeftConfig", "Request"]


def _known(name: str) -> str:
    """The name itself. Raises ValueError where there is no such method, or one that cannot be used here."""
    if name in REFUSED:
        raise ValueError(f"{name} cannot be used: {REFUSED[name]}")
    if name not in METHODS:
        close = nearest(name, METHODS)
        remedy = f"did you mean {close!r}?" if close else f"it has {', '.join(METHODS)}"
        raise ValueError(f"PEFT has no method {name!r}; {remedy}")
    return name


class PeftConfig(PluginConfig):
    """The options that all methods share, and those of the one."""

    method: Annotated[str, AfterValidator(_known)] = Field(
        description="the method, as PEFT calls it in lower case, such as vera or prompt_tuning"
    )
    targets: Targets | None = Field(
        None,
        description="which layers it changes: all-linear, a list of names, or a regular expression over the whole "
        "names of linear layers; left out: all-linear, for ln_tuning the norms; methods that learn a prompt have none",
    )
    options: dict[str, Any] = Field(
        {}, description="options of the method, by the names they have in its configuration class in PEFT"
    )
    modules_to_save: tuple[str, ...] = Field((), description="names of modules trained whole, saved with the adapter")


class MethodPlugin(Plugin[Config]):
    """An adapter of one of PEFT's methods; `request` says which, and with what."""

    @property
    def request(self) -> Request:
        """The method and its options."""
        raise NotImplementedError

    @property
    def provides(self) -> frozenset[str]:
        """An adapter: several by name, and one that cannot be added into the weights, by what the method can.

        And whether it trains parameters that lie in no module.
        """
        request = self.request
        more = {"adapter.named"} if request.entry.named else set()
        more |= set() if request.entry.modules else {"adapter.parameters"}
        more |= set() if request.entry.merges else {"adapter.apart"}
        return frozenset({"adapter", f"adapter.{request.method}", "adapter.saved", *more})

    @property
    def conflicts(self) -> frozenset[str]:
        """Quantised weights, where the method's layers cannot stand on them."""
        return frozenset() if self.request.entry.quantized else frozenset({"quantization"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse quantised weights of another kind than those it was tried on, and to begin with another's adapter."""
        from .checks import problems

        return problems(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Check the options against PEFT's configuration class, wrap the skeleton, and count what trains."""
        from .adapter import estimate_adapter

        return estimate_adapter(self.request, request, estimate)

    @hookimpl
    def tunekit_attach_adapter(self, bundle: ModelBundle, context: Context) -> ModelBundle:
        """Put a fresh adapter on the model, or the saved one where the bundle names it."""
        from tunekit_lora.named import LoraAdapters

        from .adapter import attach, reopen, save

        request = self.request
        model = reopen(request, bundle) if bundle.saved_adapter else attach(request, bundle, context)
        adapters = LoraAdapters() if request.entry.named else None
        return bundle.with_model(model, adapter=request.plugin, save=partial(save, request=request), adapters=adapters)


class Peft(MethodPlugin[PeftConfig]):
    """VeRA, IA3, LoHa, prompt tuning and the other methods of PEFT, by name."""

    @property
    def request(self) -> Request:
        """The method and its options, as they are given."""
        config = self.config
        given = {name: f"use.peft.options.{name}" for name in config.options}
        shared = {"target_modules": "targets", "modules_to_save": "modules_to_save"}
        given |= {name: f"use.peft.{option}" for name, option in shared.items() if option in config.model_fields_set}
        return Request("peft", config.method, config.targets, config.options, config.modules_to_save, given)
