"""How weights are stored: as the options ask, or as a checkpoint says that was quantised before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import LoadRequest
from tunekit_transformers import stored_quantization
from tunekit_transformers.sources import LEGACY


@dataclass(frozen=True)
class Storage:
    """Bits of an integer, inputs that share a scale (-1: all), and whether the group of each input is stored.

    `only` are the ends of names of the layers that are quantised, `never` parts of the names of those that are not.
    """

    bits: int
    group_size: int
    indexed: bool = False
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = field(default=())

    def covers(self, name: str) -> bool:
        """Whether a layer of this name is quantised."""
        chosen = not self.only or name.endswith(self.only)
        return chosen and not any(part in name for part in self.never)

    @property
    def bits_per_weight(self) -> float:
        """Integer, and its share of scale and zero."""
        return self.bits if self.group_size == -1 else self.bits + (16 + self.bits) / self.group_size


def stored(request: LoadRequest) -> Mapping[str, Any] | None:
    """What a checkpoint says of how it is quantised, None where its weights are plain or nothing is known yet.

    Older ones say it in a file of its own, which transformers does not read.
    """
    return stored_quantization(request) or legacy(request.model)


def legacy(model: str) -> dict[str, Any] | None:
    """What that file of a local folder says, in today's words; None where there is none."""
    folder = Path(model).expanduser()
    path = next((folder / name for name in LEGACY if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TunekitError(f"{path} cannot be read: {error}", "copy the checkpoint again") from error
    if path.name == LEGACY[1]:
        words = {"w_bit": "bits", "q_group_size": "group_size"}
        said = {words.get(name, name): value for name, value in said.items()}
        return {**said, "quant_method": "awq", "version": str(said.get("version", "gemm")).lower()}
    return {"quant_method": "gptq", "checkpoint_format": "gptq", **said}
