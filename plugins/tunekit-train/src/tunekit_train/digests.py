"""A digest of weights, for what is kept on disk only as long as they are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tunekit.tensors import plain_tensors

SAMPLE = 4096
"""Numbers of a frozen weight that are looked at."""


def weights_of(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a model, and the buffers that are saved with it: layers of few bits hold their weight there."""
    yield from model.named_parameters()
    saved = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def add_weight(digest: Any, name: str, parameter: Tensor, whole: bool) -> None:
    """Take a weight into a `hashlib` digest: all of its numbers, or an even sample of about 4096."""
    for part, tensor in plain_tensors(name, parameter.detach()):
        flat = tensor.reshape(-1)
        if not whole:
            flat = flat[:: max(1, flat.numel() // SAMPLE)]
        digest.update(f"{part} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())
