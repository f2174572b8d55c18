"""Starting an adapter as the best low-rank part of what quantisation has lost of each weight."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tunekit.errors import TunekitError
from tunekit.values import ModelBundle
from tunekit_lora.residual import adapted_layers, adapter_of, factors_of, refuse_odd

from .starts import best_factors

ROWS = 1024
"""Columns of a quantised weight that are asked for at a time."""
FAR = 0.5
"""The relative difference from which on a stored weight is not that of the checkpoint, rounded: 4 bits are at 0.1."""


def start_loftq_(model: Any, bundle: ModelBundle) -> Any:
    """Let every adapter begin as what its layer has lost. The base stays as it is.

    Raises TunekitError where the checkpoint holds no such weights.
    """
    refuse_odd(model, "loftq")
    named = Path(bundle.source).is_dir()  # else transformers knows where it has found the model
    checkpoint = Checkpoint.of(bundle.source if named else model.get_base_model().name_or_path, bundle.source)
    name = adapter_of(model)
    for place, layer in adapted_layers(model):
        stored = stored_weight(layer)
        dense = checkpoint.weight(f"{place.removeprefix('base_model.model.')}.weight", stored)
        down, up = factors_of(model, layer)
        start = best_factors(dense - stored, layer.r[name], layer.scaling[name])
        for old, new in zip((down, up), start, strict=True):
            old.data = new.to(old.device, old.dtype).contiguous()
    return model


def stored_weight(layer: Any) -> Tensor:
    """The weight [out in] that a quantised layer computes with, fp32: what it says of each unit vector.

    So it is known of every kind of quantised layer, in the way its own kernels read it.
    """
    base = layer.get_base_layer()
    device = next(iter([*base.parameters(), *base.buffers()])).device
    parts = []
    with torch.no_grad():
        zero = base(torch.zeros(1, layer.in_features, device=device)).float()
        for start in range(0, layer.in_features, ROWS):
            end = min(start + ROWS, layer.in_features)
            unit = torch.zeros(end - start, layer.in_features, device=device)
            unit[torch.arange(end - start), torch.arange(start, end)] = 1
            parts.append(base(unit).float() - zero)
    return torch.cat(parts).T.contiguous()


class Checkpoint:
    """The weights of a model as it was named, read one at a time."""

    def __init__(self, source: str, files: dict[str, Path]) -> None:
        self.source, self.files = source, files

    @classmethod
    def of(cls, place: str, source: str) -> Checkpoint:
        """Find the files of a folder, or of a model of the hub."""
        folder = Path(place)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(place, allow_patterns=["*.safetensors", "*.safetensors.index.json"]))
        files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                files |= dict.fromkeys(file.keys(), path)
        return cls(source, files)

    def weight(self, name: str, stored: Tensor) -> Tensor:
        """The weight of this name, fp32 [out in]. TunekitError where it is not what `stored` was rounded from."""
        if name not in self.files:
            message = f"loftq mends what quantisation has lost, and {self.source} holds no {name} before it"
            raise TunekitError(message, "name the model that is not quantised, and a quantiser in use")
        with safe_open(self.files[name], framework="pt") as file:
            dense: Tensor = file.get_tensor(name).float().to(stored.device)
        # GPT-2's layers are stored [in out]. Of a square one only the numbers tell: the quantised layer is another.
        apart, dense = min(((_apart(each, stored), each) for each in (dense, dense.T)), key=itemgetter(0))
        if apart > FAR:
            message = f"{name} of {self.source} is not what the quantised layer was made of: they differ by {apart:.2f}"
            raise TunekitError(message, "take loftq out")
        return dense


def _apart(dense: Tensor, stored: Tensor) -> float:
    """The relative difference of two weights; 1 where they are of different shapes."""
    return float((dense - stored).norm() / dense.norm()) if dense.shape == stored.shape else 1.0
