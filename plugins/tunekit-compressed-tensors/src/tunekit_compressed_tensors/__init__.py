"""Adapters over checkpoints that compressed-tensors has stored, whose weights stay as small as they are on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Literal

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.options import DenseExportConfig
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import (
    Context,
    Estimate,
    EstimateRequest,
    Exported,
    ExportRequest,
    LoadRequest,
    Machine,
    ModelBundle,
    Plan,
    Quantization,
)
from tunekit_transformers import stored_quantization

__all__ = [
    "CompressedTensors",
    "CompressedTensorsConfig",
    "CompressedTensorsExport",
    "CompressedTensorsExportConfig",
]


class CompressedTensorsConfig(PluginConfig):
    """The options of reading a compressed checkpoint."""

    plain_inputs: bool = Field(
        False,
        description="train although the checkpoint says that what goes into a layer is rounded when it is served: here "
        "it is not, so the adapter learns over other numbers than it will meet",
    )


class CompressedTensors(Plugin[CompressedTensorsConfig]):
    """Reads what llm-compressor writes and vLLM serves: packed integers and float8 (compressed-tensors)."""

    requires = frozenset({"adapter"})
    provides = frozenset({"quantization", "quantization.compressed-tensors"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a checkpoint that is stored another way, and one whose inputs are rounded unless that is accepted."""
        from .checks import problems

        return problems(self.config, str(plan.recipe.model), stored_quantization(plan.load_request))

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Count the layers of the checkpoint's groups in their bits, scales included."""
        from .estimate import estimate_weights

        stored = stored_quantization(request.load)
        return estimate if stored is None else estimate_weights(stored, request.load.precision.weights, estimate)

    @hookimpl
    def tunekit_quantize(self, request: LoadRequest) -> Quantization:
        """Keep the weights compressed where transformers would make them dense in the first forward."""
        from .estimate import stored_bits
        from .layers import compressed, dense

        stored = stored_quantization(request)
        return Quantization(
            method="compressed-tensors",
            bits=8.0 if stored is None else stored_bits(stored, request.precision.weights),
            after_load=partial(compressed, dtype=request.precision.weights),
            dequantize=dense,
            elsewhere="CompressedTensorsConfig(dequantize=True)",  # PEFT finds no weight in layers that are compressed
        )


class CompressedTensorsExportConfig(DenseExportConfig):
    """The options of compressed weights to serve."""

    bits: Literal[4, 8] = Field(4, description="bits per weight")
    group: int = Field(32, ge=8, description="weights of a row that share a scale; at least 8, a divisor of every row")


class CompressedTensorsExport(Plugin[CompressedTensorsExportConfig]):
    """The merged model with packed integer weights, each group rounded to the nearest, for vLLM and transformers."""

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse what no dense export can hold."""
        from tunekit_transformers.dense_exports import dense_problems

        return dense_problems(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse groups that do not divide a row, and layers that are none; tell of what stays dense."""
        from tunekit_transformers.dense_exports import key_of
        from tunekit_transformers.quantizing import (
            layers_to_quantize,
            note_of_experts,
            refuse_transposed,
            refuse_uneven,
        )

        key = key_of(self, request.plan)
        layers = layers_to_quantize(estimate.skeleton, (), key)
        refuse_transposed(layers, key)
        refuse_uneven(layers, self.config.group, f"{key}.group")
        return replace(estimate, notes=(*estimate.notes, *note_of_experts(estimate.skeleton)))

    @hookimpl
    def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
        """Merge in float32, round, pack, write, and have transformers read it."""
        from .exporting import export_packed

        return export_packed(self.config, bundle, request)
