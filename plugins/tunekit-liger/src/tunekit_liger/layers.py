"""Norms and MLPs of a model instance, computed by Liger's functional kernels.

Liger's own `apply_liger_kernel_to_*` replaces classes and functions of transformers for the whole process, even where
it is given a model; and its loss takes the place of a head that the engine runs at supervised positions only. Rotary
positions are left alone, since they are a function of the module and not of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

from torch import Tensor

from tunekit.errors import PlanError, Problem
from tunekit.values import Report

from . import LigerConfig


class Norm(NamedTuple):
    """An RMS norm x / rms(x) (offset + weight), and where it rounds: `llama` before the weight, `gemma` at the end."""

    offset: float
    casting: str


LLAMA, GEMMA = Norm(0.0, "llama"), Norm(1.0, "gemma")
NORMS: dict[str, Norm] = {
    **{f"{name}RMSNorm": LLAMA for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "SmolLM3", "Granite")},
    **{f"{name}RMSNorm": LLAMA for name in ("Mixtral", "Qwen2Moe", "Qwen3Moe")},
    **{f"{name}RMSNorm": GEMMA for name in ("Gemma", "Gemma2", "Gemma3")},
    "Olmo2RMSNorm": Norm(0.0, "gemma"),
}
"""The norms of transformers that the tests have shown to be computed alike."""
MLPS = frozenset(
    f"{name}MLP"
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Olmo2", "Granite", "Qwen2Moe", "Qwen3Moe")
) | {"GemmaMLP", "Gemma2MLP", "Gemma3MLP"}
"""The MLPs of transformers with `gate_proj`, `up_proj`, `down_proj` and an activation named by `hidden_act`."""
PRODUCTS = {"silu": "liger_swiglu", "gelu_pytorch_tanh": "liger_geglu"}
"""The kernel for each activation."""


def find(model: Any, config: LigerConfig) -> dict[str, tuple[Any, str]]:
    """The modules to compute otherwise, by name, each with what it is: a `norm`, or the kernel of an MLP.

    Raises PlanError where the model has none of a kind that is asked for. Works on the meta device.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = {name: (module, kind) for name, module in base.named_modules() if (kind := _kind(module))}
    wanted = {"rms_norm": config.rms_norm, "mlp": config.mlp}
    there = {"rms_norm" if kind == "norm" else "mlp" for _, kind in found.values()}
    lacking = [
        Problem(
            f"use.liger.{option}", f"{type(base).__name__} has no layer that its kernel computes", "set it to false"
        )
        for option, asked in wanted.items()
        if asked and option not in there
    ]
    if lacking:
        raise PlanError(lacking)
    return {name: each for name, each in found.items() if wanted["rms_norm" if each[1] == "norm" else "mlp"]}


def _kind(module: Any) -> str | None:
    name = type(module).__name__
    if not type(module).__module__.startswith("transformers."):
        return None
    if name in NORMS:
        return "norm"
    if name not in MLPS:
        return None
    activation = "hidden_activation" if name in ("Gemma2MLP", "Gemma3MLP") else "hidden_act"
    return PRODUCTS.get(str(getattr(module.config, activation, None)))


def fuse_(model: Any, config: LigerConfig) -> Report:
    """Give these modules of this model instance the kernels' forward."""
    from liger_kernel.transformers import functional  # type: ignore[import-not-found, import-untyped, unused-ignore]

    found = find(model, config)
    for module, kind in found.values():
        module.forward = MethodType(_norm(module, functional) if kind == "norm" else _mlp(kind, functional), module)
    counts = Counter("norms" if kind == "norm" else "MLPs" for _, kind in found.values())
    told = " and ".join(f"{count} {name}" for name, count in counts.items())
    return Report(f"{told} by Liger's kernels", dict(counts), partial(_give_back, [each for each, _ in found.values()]))


def _give_back(modules: list[Any]) -> None:
    for module in modules:
        module.__dict__.pop("forward", None)


def _norm(module: Any, functional: Any) -> Callable[[Any, Tensor], Tensor]:
    """Forward of a norm, [..., hidden size]."""
    norm = NORMS[type(module).__name__]

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        # Not in place: what comes in is also what goes past the norm, and checkpoints may hold it.
        out: Tensor = functional.liger_rms_norm(hidden_states, self.weight, eps, norm.offset, norm.casting, False)
        return out

    return forward


def _mlp(kernel: str, functional: Any) -> Callable[[Any, Tensor], Tensor]:
    """Forward of an MLP, [batch, seq, hidden size]; its layers may carry adapters."""
    product = getattr(functional, kernel)

    def forward(self: Any, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(product(self.gate_proj(x), self.up_proj(x)))
        return out

    return forward
