"""Where a low-rank adapter starts: seven ways beside LoRA's own, each a plugin on LoRA's hooks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Context, Estimate, EstimateRequest, Machine, ModelBundle, Plan

from .residual import ResidualStart

__all__ = [
    "Corda",
    "CordaConfig",
    "Direction",
    "Eva",
    "EvaConfig",
    "Gaussian",
    "Loftq",
    "Loraga",
    "LoragaConfig",
    "NoOptions",
    "Olora",
    "Orthogonal",
]

Direction = Literal["ArB2r", "A2rBr", "ArBr"]
"""Which singular vectors of a gradient A and B start as: see `Loraga`."""

STARTS = frozenset({"adapter.start"})


class NoOptions(PluginConfig):
    """None: rank, scale and targets are LoRA's options."""


class Gaussian(Plugin[NoOptions]):
    """LoRA as in its paper: A is drawn from a normal distribution of deviation 1/rank, B is zero (arXiv 2106.09685)."""

    requires = frozenset({"adapter.lora"})
    provides = STARTS
    conflicts = STARTS

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a stage that begins with a saved adapter."""
        from .checks import no_start

        return no_start(self, "gaussian", plan)

    @hookimpl
    def tunekit_lora_config(self, config: Any) -> Any:
        """Ask PEFT for it."""
        return replace(config, init_lora_weights="gaussian")


class Orthogonal(Plugin[NoOptions]):
    """A and B that are not zero and whose product is, so that both learn from the first step."""

    requires = frozenset({"adapter.lora"})
    provides = STARTS
    conflicts = STARTS

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse 16 bits, in which the product of A and B is not zero, and a stage that begins with a saved adapter."""
        from .checks import no_start

        yield from no_start(self, "orthogonal", plan)
        if plan.precision.trainable != "float32":
            dtype = plan.precision.trainable
            message = f"the product of A and B is zero only up to rounding, which is coarse in {dtype}"
            yield Problem("use.orthogonal", message, "leave use.precision.pure out")

    @hookimpl
    def tunekit_lora_config(self, config: Any) -> Any:
        """Refuse odd ranks: half of the directions are A's, half B's."""
        from .checks import even_ranks

        return even_ranks(config)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse what is no linear layer."""
        from tunekit_lora.residual import refuse_odd

        refuse_odd(estimate.skeleton, "orthogonal")
        return estimate

    @hookimpl
    def tunekit_lora_attached(self, model: Any) -> Any:
        """Draw both, by the seed of the run."""
        from .applying import start_orthogonal_

        return start_orthogonal_(model)


class Olora(ResidualStart[NoOptions]):
    """The first columns of the QR decomposition of each weight, over a base that keeps the rest (arXiv 2406.01775)."""

    name = "olora"

    @hookimpl
    def tunekit_lora_attached(self, model: Any) -> Any:
        """Decompose each weight."""
        from .applying import start_olora_

        return start_olora_(model)


class EvaConfig(PluginConfig):
    """The options of EVA."""

    items: int = Field(256, ge=1, description="how many examples are looked at, from the first on")


class Eva(Plugin[EvaConfig]):
    """A starts as the directions in which the inputs of a layer vary most, B is zero (EVA, arXiv 2410.07170)."""

    requires = frozenset({"adapter.lora"})
    provides = STARTS
    conflicts = STARTS

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a stage that begins with a saved adapter."""
        from .checks import no_start

        return no_start(self, "eva", plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse what is no linear layer."""
        from tunekit_lora.residual import refuse_odd

        refuse_odd(estimate.skeleton, "eva")
        return estimate

    @hookimpl
    def tunekit_lora_attached(self, model: Any, bundle: ModelBundle, context: Context) -> Any:
        """Run the data of the stage through the model and measure the inputs of each layer."""
        from .applying import start_eva_

        return start_eva_(model, context, self.config.items)


class CordaConfig(PluginConfig):
    """The options of CorDA."""

    items: int = Field(256, ge=1, description="how many examples are looked at, from the first on")
    adapt: Literal["task", "rest"] = Field(
        "task",
        description="what the adapter starts as: task, the directions that matter most to the data that is looked at "
        "(the paper's instruction-previewed mode); rest, those that matter least, so that what the data needs stays in "
        "the frozen base (its knowledge-preserved mode)",
    )


class Corda(ResidualStart[CordaConfig]):
    """A part of each weight, chosen by the covariance of the layer's inputs (CorDA, arXiv 2406.05223)."""

    name = "corda"

    @hookimpl
    def tunekit_lora_attached(self, model: Any, bundle: ModelBundle, context: Context) -> Any:
        """Run the data of the stage through the model, and decompose each weight by what its layer was given."""
        from .applying import start_corda_

        return start_corda_(model, context, self.config)


class LoragaConfig(PluginConfig):
    """The options of LoRA-GA."""

    items: int = Field(64, ge=1, description="how many examples the gradient is taken of, from the first on")
    direction: Direction = Field(
        "ArB2r",
        description="which singular vectors of the gradient: ArB2r, A the first rank right ones and B the next rank "
        "left ones; A2rBr, the other way round; ArBr, in turn",
    )
    gamma: float = Field(
        16.0, gt=0, description="A and B are scaled by the fourth root of the outputs over the root of this"
    )


class Loraga(ResidualStart[LoragaConfig]):
    """Singular vectors of each weight's gradient, so that the first step is near full tuning's (arXiv 2407.05000)."""

    name = "loraga"

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a first stage that learns from its own answers: no token of its prompts has a loss."""
        yield from super().tunekit_check(plan=plan, machine=machine)
        first = plan.stages[0] if plan.stages else None
        if first is not None and "stage.rewarded" in first.plugin.plugin.provides:
            what = f"takes the gradient of the loss of answers, and {first.plugin.name} has prompts alone"
            yield Problem("use.loraga", what, "train on answers first, or choose another start, such as eva")

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse ranks that leave no room for twice as many directions."""
        from .checks import room_for_two

        room_for_two(estimate.skeleton)
        counted: Estimate = super().tunekit_estimate(request=request, estimate=estimate)
        return counted

    @hookimpl
    def tunekit_lora_attached(self, model: Any, bundle: ModelBundle, context: Context) -> Any:
        """Take the gradient of the stage's data, and start from its singular vectors."""
        from .applying import start_loraga_

        return start_loraga_(model, context, self.config)


class Loftq(Plugin[NoOptions]):
    """What quantisation has lost: the adapter starts as the best low-rank part of it (LoftQ, arXiv 2310.08659)."""

    requires = frozenset({"adapter.lora", "quantization"})
    provides = STARTS | {"adapter.loftq"}
    conflicts = STARTS

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a stage that begins with a saved adapter, and a model of which only rounded weights are there."""
        from .checks import no_start, nothing_lost

        yield from no_start(self, "loftq", plan)
        yield from nothing_lost(plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse what is no linear layer."""
        from tunekit_lora.residual import refuse_odd

        refuse_odd(estimate.skeleton, "loftq")
        return estimate

    @hookimpl
    def tunekit_lora_attached(self, model: Any, bundle: ModelBundle, context: Context) -> Any:
        """Read the weights as they were before, one layer after the other, and decompose the difference."""
        from .lost import start_loftq_

        return start_loftq_(model, bundle)
