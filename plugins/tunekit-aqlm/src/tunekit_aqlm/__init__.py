"""Adapters over checkpoints of AQLM: weights that are sums of entries of learnt codebooks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, LoadRequest, Machine, Plan, Quantization
from tunekit_transformers import stored_quantization

__all__ = ["Aqlm", "AqlmConfig"]


class AqlmConfig(PluginConfig):
    """AQLM has no options: everything was decided when the checkpoint was made."""


class Aqlm(Plugin[AqlmConfig]):
    """Reads AQLM's checkpoints (Extreme Compression of LLMs via Additive Quantization, arXiv 2401.06118)."""

    requires = frozenset({"adapter"})
    provides = frozenset({"quantization", "quantization.aqlm"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a checkpoint that AQLM has not made."""
        if stored_quantization(plan.load_request) is None:
            model = plan.recipe.model
            what = f"reads checkpoints that AQLM has made, and config.json of {model} says nothing of it"
            yield Problem("use.aqlm", what, "take it out, or name such a checkpoint; making one is not offered")

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Count the linear layers as codes, codebooks and scales."""
        from .checkpoint import estimate_weights

        stored = stored_quantization(request.load)
        return estimate if stored is None else estimate_weights(stored, request.load.precision.weights, estimate)

    @hookimpl
    def tunekit_quantize(self, request: LoadRequest) -> Quantization:
        """Compute with layers of our own once AQLM's are loaded: on a CPU, its kernels cannot train adapters."""
        from .checkpoint import stored_bits
        from .layers import coded, dense

        stored = stored_quantization(request)
        return Quantization(
            method="aqlm",
            bits=2.0 if stored is None else stored_bits(stored),
            after_load=coded,
            dequantize=partial(dense, dtype=request.precision.weights),
        )

    @hookimpl
    def tunekit_before_load(self, request: LoadRequest) -> LoadRequest:
        """Write the layers that were left alone as transformers understands them."""
        from .checkpoint import name_layers_

        return request if stored_quantization(request) is None else request.configured(name_layers_)
