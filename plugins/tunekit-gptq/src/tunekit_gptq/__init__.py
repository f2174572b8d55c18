"""GPTQ: weights of 2, 3, 4 or 8 bits that were rounded one after the other, each mending what the last one did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from .packed import Calibration, Packed, PackedConfig, PackedExport, PackedExportConfig
from .stored import Storage

if TYPE_CHECKING:
    from .layers import Kind

__all__ = [
    "Calibration",
    "Gptq",
    "GptqConfig",
    "GptqExport",
    "GptqExportConfig",
    "Packed",
    "PackedConfig",
    "PackedExport",
    "PackedExportConfig",
]


class GptqOptions(Calibration):
    """How GPTQ rounds."""

    bits: Literal[2, 3, 4, 8] = Field(4, description="bits per weight")
    group_size: Literal[-1, 16, 32, 64, 128, 256, 512, 1024] = Field(
        128, description="inputs that share a scale, a divisor of each layer's number of inputs; -1: all of a column"
    )
    symmetric: bool = Field(True, description="zero in the middle of the range; false: a zero for each group")
    act_order: bool = Field(
        False, description="round the inputs that matter most first, and give them groups of their own; slower products"
    )
    damping: float = Field(0.05, gt=0, lt=1, description="added to the diagonal of the Hessian, as a share of its mean")


class GptqConfig(GptqOptions, PackedConfig):
    """The options of GPTQ."""


class GptqExportConfig(GptqOptions, PackedExportConfig):
    """The options of GPTQ as an export."""


class Gptq(Packed[GptqConfig]):
    """GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv 2210.17323."""

    method = "gptq"
    backend = "gptq_torch"
    layouts = ("gptq", "gptq_v2")
    dtypes = ("float32", "bfloat16", "float16")
    provides = frozenset({"quantization", "quantization.gptq"})

    def kind(self) -> Kind:
        """Layers of gptqmodel's torch kernel."""
        from .layers import GPTQ

        return GPTQ

    def storage(self, said: Mapping[str, Any] | None) -> Storage:
        """As a checkpoint says, else as the options ask."""
        if said is None:
            return Storage(self.config.bits, self.config.group_size, indexed=True)
        only = said.get("modules_in_block_to_quantize") or ()
        return Storage(
            int(said["bits"]), int(said["group_size"]), indexed=True, only=tuple(name for each in only for name in each)
        )

    def loading(self, said: Mapping[str, Any] | None) -> Any:
        """The kernel; the rest stands in the checkpoint."""
        from transformers import GPTQConfig

        return GPTQConfig(bits=self.storage(said).bits, backend=self.backend)

    def settings(self) -> dict[str, Any]:
        """In gptqmodel's words."""
        config = self.config
        return {
            "method": "gptq",
            "format": "gptq",
            "bits": config.bits,
            "group_size": config.group_size,
            "sym": config.symmetric,
            "desc_act": config.act_order,
            "damp_percent": config.damping,
            "act_group_aware": not config.act_order and config.group_size > 0,
        }


class GptqExport(PackedExport[GptqExportConfig]):
    """One model in GPTQ's format, the adapter added into its weights before they were rounded."""

    method = "gptq"

    def plugin(self) -> Gptq:
        """GPTQ with the options of this export."""
        return Gptq(**{name: getattr(self.config, name) for name in GptqOptions.model_fields})
