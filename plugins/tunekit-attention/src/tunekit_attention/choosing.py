"""The choice of a kernel, from the plan alone: no torch, no network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

from tunekit.errors import Problem, TunekitError
from tunekit.values import Accelerator, LoadRequest, Machine, Plan

from . import AttentionConfig, Kind

IMPLEMENTATIONS: dict[str, str] = {
    "sdpa": "sdpa",
    "flex": "flex_attention",
    "flash2": "flash_attention_2",
    "flash3": "flash_attention_3",
    "eager": "eager",
}
"""What transformers calls each kind."""
PACKAGES: dict[str, tuple[str, str]] = {
    "flash2": ("flash-attn", "pip install flash-attn --no-build-isolation"),
    "flash3": ("flash-attn-3", "build flash-attn-3 from the folder `hopper` of the flash-attention repository"),
    "kernel": ("kernels", "pip install kernels"),
}
"""The distribution that each kind needs, and how it is installed."""
OLDEST = {"flash2": (8, 0), "flash3": (9, 0), "kernel": (8, 0)}
"""The NVIDIA compute capability that each kind needs."""


@dataclass(frozen=True)
class Choice:
    """A kind of attention, transformers' name for it, and why it was chosen; no name: what transformers chooses.

    `firm` where the recipe names it; else a model whose code does not know it has what transformers chooses.
    """

    kind: Kind
    implementation: str | None
    reason: str
    firm: bool = True


def choose(config: AttentionConfig, plan: Plan) -> Choice:
    """Choose by hardware, dtype and padding, or do as the recipe says."""
    if plan.purpose == "open" and any(obstacles(config, plan)):
        return Choice("sdpa", None, "since this machine cannot run what the run was trained with", firm=False)
    if config.kind == "kernel":
        return Choice("kernel", config.repository, "as use.attention.kernel says")
    if config.kind != "auto":
        return Choice(config.kind, IMPLEMENTATIONS[config.kind], f"as use.attention.kind says: {config.kind}")
    kind, reason = _by_itself(plan)
    # A model without sdpa is loaded with eager, so that its name is not insisted on.
    return Choice(kind, None if kind == "sdpa" else IMPLEMENTATIONS[kind], reason, firm=False)


def _by_itself(plan: Plan) -> tuple[Kind, str]:
    hardware = _unfit("flash2", plan)
    if hardware is not None:
        return "sdpa", f"since {hardware}"
    if _unfit("flash3", plan) is None and is_installed("flash-attn-3"):
        return "flash3", "the fastest on a Hopper card, and flash-attn-3 is installed"
    if plan.stages and not any(_padded(stage.plugin.plugin.config) for stage in plan.stages):
        return "sdpa", "batches have no padding, and torch's own kernel for sequences of any length runs them"
    if is_installed("flash-attn"):
        return "flash2", "batches are padded, and flash-attn leaves the padding out"
    return "sdpa", "flash-attn is not installed"


def _padded(config: Any) -> bool:
    """Whether a stage pads by its options; what trains by another library always does."""
    batch = getattr(config, "batch", None)
    return batch is None or batch.padding == "always"


def _unfit(kind: str, plan: Plan) -> str | None:
    """Say why the device or the precision cannot run a kind of FlashAttention, or None."""
    precision, card = plan.precision, _card(plan.machine)
    if precision.device != "cuda":
        return f"FlashAttention runs on CUDA, and this is a {precision.device}"
    if precision.compute == "float32":
        return "FlashAttention computes in half precision, and this run in float32"
    oldest = OLDEST[kind]
    if card is not None and card.capability is not None and card.capability < oldest:
        have, need = (".".join(map(str, each)) for each in (card.capability, oldest))
        return f"{kind} needs compute capability {need}, and {card.name} has {have}"
    if kind == "flash3" and (card is None or card.capability is None or card.capability[0] != 9):
        return f"flash3 is written for Hopper cards, and this is {card.name if card else 'another'}"
    return None


def _card(machine: Machine) -> Accelerator | None:
    return next((each for each in machine.accelerators if each.kind == "cuda"), None)


def is_installed(distribution: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def problems(plugin: Any, plan: Plan, machine: Machine) -> Iterator[Problem]:
    """What stands against the kernel that the recipe names."""
    config: AttentionConfig = plugin.config
    key = next(planned.key for planned in plan.plugins if planned.plugin is plugin)
    where, other = f"{key}.kind", plan.plugin("transformers")
    if other is not None and getattr(other.plugin.config, "attention", "auto") != "auto":
        yield Problem(f"{other.key}.attention", "is chosen, and so is use.attention", "leave one of the two out")
    if config.kind == "flex" and plan.stages and plan.precision.device == "cpu":
        yield Problem(where, "is flex, and FlexAttention has no backward on a CPU", "use auto, sdpa or eager")
    if plan.purpose != "open":  # then what this machine can run is taken instead
        yield from obstacles(config, plan, key)


def obstacles(config: AttentionConfig, plan: Plan, key: str = "use.attention") -> Iterator[Problem]:
    """Why this machine, its packages or the precision cannot run the kernel that is named."""
    where = f"{key}.kind"
    if config.kind in OLDEST and (why := _unfit(config.kind, plan)) is not None:
        remedy = "set use.precision.compute to bf16" if "float32" in why else "use auto or sdpa"
        yield Problem(where, f"is {config.kind}, but {why}", remedy)
    if config.kind in PACKAGES and not is_installed(PACKAGES[config.kind][0]):
        package, remedy = PACKAGES[config.kind]
        yield Problem(where, f"is {config.kind}, and {package} is not installed", f"`{remedy}`, or use auto")
    elif config.kind == "kernel" and os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        what = f"is {config.repository}, which comes from the hub, and HF_HUB_OFFLINE forbids to ask it"
        yield Problem(f"{key}.kernel", what, "unset it, or use auto")


def with_implementation(request: LoadRequest, choice: Choice) -> LoadRequest:
    """The request for a model with this attention. TunekitError where another plugin asks for another.

    FlashAttention is not asked for where the model is loaded in float32 after all, to be merged and exported.
    """
    wide = request.precision.compute == "float32" and choice.kind in OLDEST
    if choice.implementation is None or wide:
        return request
    asked = request.arguments.get("attn_implementation", choice.implementation)
    if asked != choice.implementation:
        what = f"use.attention is {choice.kind}, but another plugin asks for {asked}"
        raise TunekitError(what, "leave one of the two out")
    if not choice.firm:
        from .model import prefer_

        return request.configured(partial(prefer_, implementation=choice.implementation))
    return request.with_arguments(attn_implementation=choice.implementation)
