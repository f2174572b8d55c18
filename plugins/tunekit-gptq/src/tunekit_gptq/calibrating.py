"""What a model is quantised by: rows of data, evenly spread; and a fingerprint of the model itself."""

from __future__ import annotations

import hashlib
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import Prepared

SAMPLED = 4096
"""Numbers of each tensor that a fingerprint looks at, besides the sum of all."""
SHORTEST = 10
"""Tokens of a row that gptqmodel looks at, at least."""


def choose_rows(data: Prepared, count: int, length: int) -> list[list[int]]:
    """The ids of `count` rows, evenly spread over the data, the first `length` tokens of each.

    Of pairs and groups the first sequence. Rows of fewer than 10 tokens are passed over. TunekitError where none is
    left.
    """
    step = max(1, data.size // count) if data.size else 1
    chosen: list[list[int]] = []
    for number, item in enumerate(data):
        if len(chosen) == count:
            break
        ids = item.sequences[0].ids[:length]
        if number % step == 0 and len(ids) >= SHORTEST:
            chosen.append([int(token) for token in ids])
    if not chosen:
        what = f"the data of the first stage has no row of {SHORTEST} tokens or more to quantise by"
        raise TunekitError(what, "add longer rows, or name a model that is quantised already")
    return chosen


def end_to_end(rows: list[list[int]], length: int) -> list[list[int]]:
    """The same tokens in blocks of `length`, without what is left behind the last; in one block if they are fewer."""
    tokens = [token for row in rows for token in row]
    length = min(length, len(tokens))
    return [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]


def fingerprint(model: Any) -> str:
    """A hash of a dense model: names, shapes, dtypes, some numbers of each tensor, and the sum of all their bits.

    The sum is one of integers, since floats add up to something else in another order, or elsewhere in memory.
    """
    import torch

    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().contiguous().flatten().view(words[tensor.element_size()])
        some = flat[:: max(1, len(flat) // SAMPLED)].cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {int(flat.sum(dtype=torch.int64))}".encode())
        digest.update(some.tobytes())
    return digest.hexdigest()
