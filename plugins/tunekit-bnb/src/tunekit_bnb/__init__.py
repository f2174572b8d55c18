"""Weights in 4 or 8 bits through bitsandbytes, under an adapter that trains."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, LoadRequest, Machine, ModelBundle, Plan, Quantization, Report
from tunekit_transformers import stored_quantization

__all__ = ["Bnb", "BnbConfig"]

DEVICES = frozenset({"cpu", "cuda", "xpu", "hpu", "npu", "mps"})
"""The device types bitsandbytes has kernels for (`bitsandbytes.supported_torch_devices`)."""

PLAIN_INPUTS = frozenset({"cpu", "xpu"})
"""Those on which bitsandbytes rounds what goes into a layer of 8 bits in evaluation alone; here, in neither mode."""

_ONLY_WITH = {"kind": 4, "double_quantization": 4, "threshold": 8}


class BnbConfig(PluginConfig):
    """The options of bitsandbytes."""

    bits: Literal[4, 8] = Field(4, description="bits per weight: 4 is QLoRA's, 8 is LLM.int8()")
    kind: Literal["nf4", "fp4"] = Field(
        "nf4", description="the 16 values of a 4-bit weight: nf4 are quantiles of a normal distribution, fp4 are floats"
    )
    double_quantization: bool = Field(
        True, description="store the scales of 4-bit weights in 8 bits: 4.13 instead of 4.5 bits per weight"
    )
    threshold: float = Field(
        6.0, ge=0, description="8 bits: input columns with a value above this are multiplied in 16 bits; 0: none"
    )
    skip: tuple[str, ...] = Field((), description="layers that keep their weights, by name or start of name")

    @model_validator(mode="after")
    def _every_option_acts(self) -> BnbConfig:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        idle = [n for n, bits in _ONLY_WITH.items() if bits != self.bits and getattr(self, n) != defaults[n]]
        if idle:
            raise ValueError(
                f"{', '.join(idle)} means nothing with {self.bits} bits; leave it out, or ask for other bits"
            )
        return self

    @property
    def scale_bits(self) -> float:
        """Bits per weight that the scales of 4-bit weights take: one scale per 64 weights."""
        return 8 / 64 + 32 / (64 * 256) if self.double_quantization else 32 / 64


class Bnb(Plugin[BnbConfig]):
    """NF4 and FP4 (QLoRA, arXiv 2305.14314) and LLM.int8() (arXiv 2208.07339)."""

    requires = frozenset({"adapter"})
    provides = frozenset({"quantization", "quantization.bnb", "quantization.bitsandbytes", "quantization.selective"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a device that bitsandbytes has no kernels for, and options that a quantised checkpoint is not."""
        from .stored import own, stored_problems, threshold_problems

        stored, device = own(stored_quantization(plan.load_request)), plan.precision.device
        yield from stored_problems(self.config, stored, device)
        if plan.purpose != "open":  # what was trained elsewhere is opened anywhere
            yield from threshold_problems(self.config, stored, device)
        if device not in DEVICES:
            remedy = f"leave bnb out, or run on one of {', '.join(sorted(DEVICES))}"
            yield Problem("use.bnb", f"bitsandbytes has no kernels for {device}", remedy)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Count the linear layers in their fewer bits, scales included; embeddings and head stay as they are."""
        from .layers import estimate_weights
        from .stored import as_stored, own

        stored = own(stored_quantization(request.load))
        dense = () if stored else request.load.dense
        return estimate_weights(as_stored(self.config, stored), request.load.precision.weights, estimate, dense)

    @hookimpl
    def tunekit_quantize(self, request: LoadRequest) -> Quantization:
        """Have the loader quantise while it loads; products run in the compute dtype of the precision policy.

        The weights cannot train. An adapter must not be merged into them: in 4 bits that loses nearly all of it. A
        checkpoint that is quantised already tells the loader itself.
        """
        import transformers

        from tunekit_transformers.quantizing import kept_names

        from .layers import dense
        from .stored import own

        config, stored = self.config, own(stored_quantization(request))
        make_config: Any = transformers.BitsAndBytesConfig
        options: dict[str, Any] = {"llm_int8_skip_modules": kept_names(config.skip, request.dense)}
        if config.bits == 4:
            options |= {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": config.kind,
                "bnb_4bit_use_double_quant": config.double_quantization,
                "bnb_4bit_compute_dtype": request.precision.compute,
            }
        else:
            options |= {"load_in_8bit": True, "llm_int8_threshold": config.threshold}
        return Quantization(
            method=config.kind if config.bits == 4 else "llm.int8",
            bits=4 + config.scale_bits if config.bits == 4 else 8.0,
            arguments={} if stored else {"quantization_config": make_config(**options)},
            dequantize=partial(dense, dtype=request.precision.weights),
        )

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Have layers compute the same in training and evaluation, and bitsandbytes quiet about it on every call."""
        from .layers import steady

        return steady(self.config, bundle.model, bundle.precision)
