"""What the run happens on, and in which number formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]

BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per element of each dtype."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator as its driver reports it.

    `kind` is torch's device type (`cuda` for NVIDIA and AMD, `npu`, `xpu`, `mps`); `vendor` tells the first two apart.
    `capability` is NVIDIA's compute capability; `bf16` is what other vendors report, None where they say nothing.
    """

    kind: str
    vendor: str
    name: str
    memory_bytes: int
    capability: tuple[int, int] | None = None
    bf16: bool | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine, probed without torch. Memory is in bytes; `cpu_features` are the flags the kernel reports."""

    system: str
    python: str
    processor: str
    cores: int
    memory_bytes: int
    cpu_features: frozenset[str] = frozenset()
    accelerators: tuple[Accelerator, ...] = ()

    @property
    def device(self) -> str:
        """The device type a run uses: the first accelerator's, else `cpu`."""
        return self.accelerators[0].kind if self.accelerators else "cpu"


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtype policy of a run, one value with its reason.

    `weights` is how frozen weights are stored, `trainable` how trained parameters are, and `compute` what matrix
    products run in. Where `compute` differs from `trainable` the products run under autocast.
    """

    device: str
    weights: DType
    compute: DType
    trainable: DType
    reason: str

    @property
    def autocast(self) -> bool:
        """Whether products are cast from the trainable dtype to the compute dtype on the fly."""
        return self.compute != self.trainable
