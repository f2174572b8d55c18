"""A digest of weights, for what is kept on disk only as long as they are the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunekit.tensors import plain_tensors

SAMPLE = 4096
"""Numbers of a frozen weight that are looked at."""


def add_weight(digest: Any, name: str, parameter: Tensor, whole: bool) -> None:
    """Take a weight into a `hashlib` digest: all of its numbers, or an even sample of about 4096."""
    for part, tensor in plain_tensors(name, parameter.detach()):
        flat = tensor.reshape(-1)
        if not whole:
            flat = flat[:: max(1, flat.numel() // SAMPLE)]
        digest.update(f"{part} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())
