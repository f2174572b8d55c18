"""Weights of two to eight bits that need no data to be chosen, through hqq."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from functools import partial
from typing import Literal

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, LoadRequest, Machine, Plan, Quantization

__all__ = ["Hqq", "HqqConfig"]


class HqqConfig(PluginConfig):
    """The options of half-quadratic quantisation."""

    bits: Literal[2, 3, 4, 8] = Field(4, description="bits per weight")
    group: int = Field(64, ge=8, description="weights that share a scale and a zero point, a multiple of 8")
    axis: Literal[0, 1] = Field(
        1, description="how weights are grouped: 1 along a row, as fast kernels want it; 0 across rows, a little nearer"
    )
    skip: tuple[str, ...] = Field((), description="layers that keep their weights, by name or start of name")


class Hqq(Plugin[HqqConfig]):
    """Half-quadratic quantisation (Half-Quadratic Quantization of Large Machine Learning Models, Mobius Labs 2023)."""

    requires = frozenset({"adapter"})
    provides = frozenset({"quantization", "quantization.hqq", "quantization.selective"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse to go on without the library, and over weights that are quantised already."""
        from tunekit_transformers import stored_quantization

        if importlib.util.find_spec("hqq") is None:
            yield Problem("use.hqq", "the package hqq is not installed", "pip install 'tunekit-hqq[hqq]'")
        stored = stored_quantization(plan.load_request)
        if stored is not None and stored["quant_method"] == "hqq":
            what = f"{plan.recipe.model} is stored quantised by hqq, which transformers no longer reads"
            yield Problem("model", what, "name a copy with plain weights: choosing the values anew takes seconds")

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Count the linear layers in their fewer bits, scales and zero points included."""
        from .sizes import estimate_weights

        return estimate_weights(self.config, request.load, estimate)

    @hookimpl
    def tunekit_quantize(self, request: LoadRequest) -> Quantization:
        """Swap the linear layers once they are loaded. The weights cannot train, nor take up an adapter."""
        from .layers import dense, quantized
        from .sizes import stored_bits

        dtype = request.precision.weights
        return Quantization(
            method=f"hqq {self.config.bits}",
            bits=stored_bits(self.config, dtype),
            after_load=partial(quantized, self.config, dtype=dtype, kept=request.dense),
            dequantize=partial(dense, dtype=dtype),
        )
