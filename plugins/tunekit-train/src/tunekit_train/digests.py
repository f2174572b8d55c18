"""A digest of weights, for what is kept on disk only as long as they are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SAMPLE = 4096
"""Numbers of a frozen weight that are looked at."""


def add_weight(digest: Any, name: str, parameter: Tensor, whole: bool) -> None:
    """Take a weight into a `hashlib` digest: all of its numbers, or an even sample of about 4096."""
    for part, tensor in _plain(name, parameter.detach()):
        flat = tensor.reshape(-1)
        if not whole:
            flat = flat[:: max(1, flat.numel() // SAMPLE)]
        digest.update(f"{part} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())


def _plain(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that hold the numbers: quantised ones of some libraries wrap them and know no views."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for inner in tensor.__tensor_flatten__()[0]:
        yield from _plain(f"{name}.{inner}", getattr(tensor, inner))
