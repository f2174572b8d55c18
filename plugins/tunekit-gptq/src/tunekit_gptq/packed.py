"""What GPTQ and AWQ share: a checkpoint read as it is, or made of a dense model, under an adapter that trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

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
    Report,
)

from .stored import Storage, stored

if TYPE_CHECKING:
    from .layers import Kind
    from .producing import Job

ALWAYS = frozenset({"cache"})
"""Options that mean something for a checkpoint that is quantised already."""


class Calibration(PluginConfig):
    """What a model is quantised by."""

    group_size: int = Field(128, description="inputs that share a scale")
    samples: int = Field(
        128, ge=1, le=4096, description="rows of the first stage's data that are looked at, evenly spread over it"
    )
    sample_tokens: int = Field(512, ge=16, le=8192, description="tokens of such a row that are looked at, at most")


class PackedConfig(Calibration):
    """The options of quantising a dense model; all but `cache` mean nothing for a checkpoint that is quantised."""

    cache: Path | None = Field(
        None, description="folder for models that were quantised; none: the user's cache folder for tunekit"
    )


class PackedExportConfig(Calibration, DenseExportConfig):
    """The options of an export that is quantised."""


Config = TypeVar("Config", bound=PackedConfig)
ExportOptions = TypeVar("ExportOptions", bound=PackedExportConfig)


class Packed(Plugin[Config]):
    """A method of gptqmodel's.

    `method` is its name in recipes and checkpoints, `backend` the kernel that trains, `layouts` are those that it
    reads. `dtypes` are those that a model can be quantised in; one of any other is, in the first of them.
    """

    method: ClassVar[str]
    backend: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[str, ...]]
    # PEFT has no DoRA for these layers, and LoftQ asks the model that is loaded for its weights before rounding.
    conflicts = frozenset({"adapter.dora", "adapter.loftq"})
    requires = frozenset({"adapter"})

    @abstractmethod
    def kind(self) -> Kind:
        """How the method looks in a loaded model."""

    @abstractmethod
    def storage(self, said: Mapping[str, Any] | None) -> Storage:
        """How weights are stored: as a checkpoint says, else as the options ask."""

    @abstractmethod
    def loading(self, said: Mapping[str, Any] | None) -> Any:
        """What transformers is to be told of it."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What gptqmodel is to be told to quantise so."""

    def job(self, dense: Any, rows: list[list[int]], target: Path, device: str) -> Job:
        """How a loaded dense model is quantised by these rows into a folder."""
        from .producing import Job

        dtype = str(dense.dtype).removeprefix("torch.")
        dtype = dtype if dtype in self.dtypes else self.dtypes[0]
        return Job("", str(target), self.settings(), self.backend, self.calibration(rows), device, dtype)

    def calibration(self, rows: list[list[int]]) -> list[list[int]]:
        """What gptqmodel is given of the chosen rows."""
        return rows

    def outputs(self, name: str) -> int:
        """What the outputs of a layer of this name have to be a multiple of, for gptqmodel to quantise it."""
        return 1

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse what cannot be read or quantised, and options that a quantised checkpoint has decided."""
        from .checks import problems

        return problems(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Count the linear layers in their fewer bits; say where the first run will quantise."""
        from tunekit_transformers.quantizing import stored_estimate

        from .layers import layers_to_pack, refuse_narrow, stored_bytes

        said, key = stored(request.load), f"use.{self.method}"
        storage = self.storage(said)
        layers = layers_to_pack(storage, estimate.skeleton, key)
        if said is None:
            refuse_narrow(layers, self.outputs, key)
            note = f"{request.load.model} is quantised by {self.method} the first time it is used so"
            estimate = replace(estimate, notes=(*estimate.notes, note))
        return stored_estimate(estimate, layers, request.load.precision.weights, partial(stored_bytes, storage))

    @hookimpl
    def tunekit_quantize(self, request: LoadRequest) -> Quantization:
        """Have the loader read packed weights with the one kernel that trains, on every device.

        What gptqmodel chooses by itself on a CPU switches, after the first evaluation, to an operation without
        gradients. The weights cannot train; to merge an adapter, they have to become dense first.
        """
        from .layers import dense

        said = stored(request)
        return Quantization(
            method=self.method,
            bits=self.storage(said).bits_per_weight,
            arguments={"quantization_config": self.loading(said), "device_map": {"": request.precision.device}},
            dequantize=partial(dense, self.kind()),
        )

    @hookimpl
    def tunekit_before_load(self, request: LoadRequest, context: Context) -> LoadRequest:
        """Name a copy that transformers can load where the model is dense, or is stored as older packages did."""
        from .copies import loadable

        return replace(request, model=loadable(self, request, context))

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Have each product unpack its weight and keep only what is packed."""
        from .layers import steady

        return steady(self.kind(), bundle.model)


class PackedExport(Plugin[ExportOptions]):
    """What was trained, made dense, merged, and quantised by data of the run."""

    method: ClassVar[str]

    @abstractmethod
    def plugin(self) -> Packed[Any]:
        """The method, with the options of this export."""

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse what cannot be quantised here, and what no dense export can hold."""
        from .checks import export_problems

        return export_problems(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse groups that do not divide the inputs of a layer, and layers that cannot be read or made so."""
        from tunekit_transformers.dense_exports import key_of

        from .layers import layers_to_pack, refuse_narrow

        key, plugin = key_of(self, request.plan), self.plugin()
        refuse_narrow(layers_to_pack(plugin.storage(None), estimate.skeleton, key), plugin.outputs, key)
        return estimate

    @hookimpl
    def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
        """Quantise, write, and have transformers read it."""
        from .exporting import export_packed

        return export_packed(self, bundle, request)
