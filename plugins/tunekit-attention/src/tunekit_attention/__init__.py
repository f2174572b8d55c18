"""Which attention kernel a model computes with: chosen by hardware, dtype and padding, or named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, LoadRequest, Machine, ModelBundle, Plan, Report

__all__ = ["Attention", "AttentionConfig"]

Kind = Literal["auto", "eager", "sdpa", "flex", "flash2", "flash3", "kernel"]


class AttentionConfig(PluginConfig):
    """The options of the attention."""

    kind: Kind = Field(
        "auto",
        description="auto: by hardware, dtype and padding, with its reason in the plan; eager: scores written out; "
        "sdpa: torch's fused kernels; flex: torch's FlexAttention; flash2, flash3: FlashAttention; kernel: one from "
        "the hub",
    )
    kernel: str | None = Field(
        None, description="hub repository of the kernel, for kind: kernel; none: kernels-community/flash-attn2"
    )

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.kernel is not None and self.kind != "kernel":
            raise ValueError(f"kernel means nothing with kind: {self.kind}; leave it out, or set kind: kernel")
        return self

    @property
    def repository(self) -> str:
        """The kernel's repository in use."""
        return self.kernel or "kernels-community/flash-attn2"


class Attention(Plugin[AttentionConfig]):
    """A choice of attention kernels: eager, SDPA, FlexAttention, FlashAttention 2 and 3, kernels from the hub."""

    provides = frozenset({"attention.chosen"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a kernel that this machine, its packages or the precision cannot run."""
        from .choosing import problems

        return problems(self, plan, machine)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Say what was chosen and why; refuse a kernel that the model's own code does not know."""
        from .choosing import choose
        from .model import refuse_unsuited, told

        choice = choose(self.config, request.plan)
        refuse_unsuited(estimate.skeleton, choice, training=bool(request.plan.stages))
        return replace(estimate, notes=(*estimate.notes, f"attention: {told(estimate.skeleton, choice)}"))

    @hookimpl
    def tunekit_before_load(self, request: LoadRequest, plan: Plan) -> LoadRequest:
        """Have the model loaded with the chosen implementation."""
        from .choosing import choose, with_implementation

        return with_implementation(request, choose(self.config, plan))

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """See that the model has what was chosen; written-out scores are given to it here."""
        from .model import set_

        return set_(bundle.model, self.config)
