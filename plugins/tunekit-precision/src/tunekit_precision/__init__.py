"""The dtype policy of a run: which number formats for weights, products and trained parameters, and why."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunekit.errors import PlanError
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Machine, Precision

from .policy import Choice, decide

__all__ = ["PrecisionConfig", "PrecisionPolicy"]


class PrecisionConfig(PluginConfig):
    """Every option has an automatic value that fits the machine; name one to overrule it."""

    device: Literal["auto", "cpu"] = Field(
        "auto", description="auto: the first accelerator, else the CPU; cpu: the CPU even where there is an accelerator"
    )
    compute: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="format of matrix products; auto: what the device computes fastest without losing range"
    )
    weights: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="format in which frozen weights are stored; auto: the format of the products"
    )
    pure: bool = Field(
        False,
        description="bf16 for everything, trained parameters too: half the memory, less exact updates; "
        "false keeps trained parameters in fp32",
    )


class PrecisionPolicy(Plugin[PrecisionConfig]):
    """Choose the dtype policy from the device and the options."""

    provides = frozenset({"precision"})

    @hookimpl
    def tunekit_precision(self, machine: Machine) -> Precision:
        """Return the policy with its reason, or raise PlanError where the device cannot do what is asked."""
        config = self.config
        choice = Choice(config.device, config.compute, config.weights, config.pure)
        policy, problems = decide(choice, machine)
        if policy is None:
            raise PlanError(problems)
        return policy
