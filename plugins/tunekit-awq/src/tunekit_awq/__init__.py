"""AWQ: weights of 4 bits, scaled before they are rounded so that the inputs that matter most are rounded least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit_gptq import Calibration, Packed, PackedConfig, PackedExport, PackedExportConfig
from tunekit_gptq.stored import Storage

if TYPE_CHECKING:
    from tunekit_gptq.layers import Kind

__all__ = ["Awq", "AwqConfig", "AwqExport", "AwqExportConfig"]


BLOCK = 64
"""Outputs of a layer that gptqmodel looks at together."""
PACKED = 8
"""Outputs that lie in one word."""
UNCUT = ("q_", "k_", "query", "key", "Wqkv")
"""Parts of the names of layers whose weights gptqmodel does not cut."""


class AwqOptions(Calibration):
    """How AWQ rounds; its weights have 4 bits."""

    group_size: Literal[-1, 16, 32, 64, 128] = Field(
        128, description="inputs that share a scale, a divisor of each layer's number of inputs; -1: all of a column"
    )


class AwqConfig(AwqOptions, PackedConfig):
    """The options of AWQ."""


class AwqExportConfig(AwqOptions, PackedExportConfig):
    """The options of AWQ as an export."""


class Awq(Packed[AwqConfig]):
    """AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration, arXiv 2306.00978."""

    method = "awq"
    backend = "torch_awq"
    layouts = ("gemm",)
    dtypes = ("float16", "bfloat16")
    provides = frozenset({"quantization", "quantization.awq"})

    def kind(self) -> Kind:
        """Layers of gptqmodel's torch kernel."""
        from tunekit_gptq.layers import Kind
        from tunekit_gptq.unpacking import awq_weight

        return Kind("awq", _is_layer, awq_weight)

    def storage(self, said: Mapping[str, Any] | None) -> Storage:
        """As a checkpoint says, else as the options ask."""
        if said is None:
            return Storage(4, self.config.group_size)
        return Storage(
            int(said["bits"]), int(said["group_size"]), never=tuple(said.get("modules_to_not_convert") or ())
        )

    def loading(self, said: Mapping[str, Any] | None) -> Any:
        """The kernel; the rest stands in the checkpoint."""
        import transformers

        storage = self.storage(said)
        make_config: Any = transformers.AwqConfig
        return make_config(bits=storage.bits, group_size=storage.group_size, backend=self.backend)

    def settings(self) -> dict[str, Any]:
        """In gptqmodel's words."""
        return {"method": "awq", "format": "gemm", "bits": 4, "group_size": self.config.group_size, "sym": False}

    def calibration(self, rows: list[list[int]]) -> list[list[int]]:
        """Blocks of one length: of rows that differ in length, gptqmodel looks at the last alone."""
        from tunekit_gptq.calibrating import end_to_end

        return end_to_end(rows, self.config.sample_tokens)

    def outputs(self, name: str) -> int:
        """It looks for where to cut the weights of 64 outputs at a time, but those that make queries and keys."""
        return PACKED if any(part in name for part in UNCUT) else BLOCK


class AwqExport(PackedExport[AwqExportConfig]):
    """One model in AWQ's format, the adapter added into its weights before they were rounded."""

    method = "awq"

    def plugin(self) -> Awq:
        """AWQ with the options of this export."""
        return Awq(**{name: getattr(self.config, name) for name in AwqOptions.model_fields})


def _is_layer(module: Any) -> bool:
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear  # type: ignore[import-not-found, import-untyped]

    return isinstance(module, AwqTorchLinear)
