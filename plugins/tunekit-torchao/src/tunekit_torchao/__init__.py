"""Weights in 8 or 4 bits or float8 through torchao, training in float8, and training that expects to be rounded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Literal

from pydantic import Field, model_validator

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
    Report,
)
from tunekit_transformers import stored_quantization

from .fp8 import Fp8, Fp8Config
from .qat import Qat, QatConfig

__all__ = [
    "DYNAMIC",
    "Fp8",
    "Fp8Config",
    "Kind",
    "Qat",
    "QatConfig",
    "Rounded",
    "Torchao",
    "TorchaoConfig",
    "TorchaoExport",
    "TorchaoExportConfig",
]

Kind = Literal["int8", "int4", "float8", "int8-dynamic", "int4-dynamic", "float8-dynamic"]

DYNAMIC = frozenset({"int8-dynamic", "int4-dynamic", "float8-dynamic"})
"""Kinds that round what goes into a layer as well, by an operation that has no gradient."""

GROUPS: dict[str, int] = {"int4": 32, "int4-dynamic": 32}
"""Weights that share a scale where the recipe does not say; for the other kinds, a whole row does."""

WHOLE_ROWS = frozenset({"int8-dynamic", "float8-dynamic"})
"""Kinds whose kernels take one scale for a row."""

GROUP = "weights of a row that share a scale; left out: int4 32, others the whole row"
SKIP = "layers that keep their weights, by name or start of name"


class Rounded(PluginConfig):
    """How weights are rounded."""

    kind: Kind = Field(
        "int8",
        description="how weights are stored: int8, int4 (a value to a byte, so no smaller than int8) or float8 (e4m3); "
        "the dynamic kinds round what goes into a layer too, and do not train",
    )
    group: int | None = Field(None, ge=8, description=f"{GROUP}; at least 8, and a divisor of every row")
    skip: tuple[str, ...] = Field((), description=SKIP)

    @model_validator(mode="after")
    def _the_group_acts(self) -> Rounded:
        if self.group is not None and self.kind in WHOLE_ROWS:
            raise ValueError(f"group means nothing with {self.kind}, which has one scale for a row; leave it out")
        return self

    @property
    def columns(self) -> int | None:
        """Weights that share a scale; None for a whole row."""
        return self.group or GROUPS.get(self.kind)


class TorchaoConfig(Rounded):
    """The options of torchao's weights."""


class Torchao(Plugin[TorchaoConfig]):
    """Rounded weights of torchao (TorchAO: PyTorch-Native Training-to-Serving Model Optimization, arXiv 2507.16099)."""

    provides = frozenset({"quantization", "quantization.torchao", "quantization.selective"})

    @property
    def requires(self) -> frozenset[str]:  # type: ignore[override]
        """Weights that are rounded once do not train; a dynamic kind trains nothing, and is refused by its stages."""
        return frozenset() if self.config.kind in DYNAMIC else frozenset({"adapter"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse to train over rounded inputs, hardware without float8, and options a quantised checkpoint is not."""
        from .checks import dynamic_problems, hardware_problems, stored_problems

        yield from dynamic_problems(self.config, plan)
        yield from hardware_problems(self.config.kind, plan.precision.device, machine, "use.torchao.kind")
        yield from stored_problems(self.config, stored_quantization(plan.load_request))

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Count the linear layers in a byte per weight and their scales; embeddings and head stay as they are."""
        from .checks import as_stored, own
        from .weights import estimate_weights

        stored = stored_quantization(request.load)
        dense = () if own(stored) else request.load.dense
        return estimate_weights(as_stored(self.config, stored), request.load.precision.weights, estimate, dense)

    @hookimpl
    def tunekit_quantize(self, request: LoadRequest) -> Quantization:
        """Have the loader round while it loads. The weights cannot train, and an adapter must not be merged in them."""
        from .checks import own
        from .weights import dense, loading_arguments, stored_bits

        stored = own(stored_quantization(request))
        return Quantization(
            method=self.config.kind,
            bits=stored_bits(self.config, request.precision.weights),
            arguments={} if stored else loading_arguments(self.config, request.dense),
            dequantize=partial(dense, dtype=request.precision.weights),
        )

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Have no layer keep its dense weight from the forward until the backward."""
        from .weights import frugal

        return frugal(self.config, bundle.model)


class TorchaoExportConfig(Rounded, DenseExportConfig):
    """The options of rounded weights to serve."""


class TorchaoExport(Plugin[TorchaoExportConfig]):
    """The merged model with the weights of its linear layers rounded by torchao, in safetensors for transformers."""

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse hardware without float8 where the result is to be read, and what no dense export can hold."""
        from tunekit_transformers.dense_exports import dense_problems, key_of

        from .checks import hardware_problems

        yield from hardware_problems(self.config.kind, plan.precision.device, machine, f"{key_of(self, plan)}.kind")
        yield from dense_problems(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse groups that do not divide a row, and names to skip that no layer has; tell of what stays dense."""
        from tunekit_transformers.dense_exports import key_of
        from tunekit_transformers.quantizing import note_of_experts

        from .weights import layers_to_round

        layers_to_round(self.config, estimate.skeleton, key_of(self, request.plan))
        return replace(estimate, notes=(*estimate.notes, *note_of_experts(estimate.skeleton)))

    @hookimpl
    def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
        """Merge in float32, round, write, and have transformers read it."""
        from .exporting import export_rounded

        return export_rounded(self.config, bundle, request)
