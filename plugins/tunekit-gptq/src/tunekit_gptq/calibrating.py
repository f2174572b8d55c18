"""What a model is quantised by: rows of data, evenly spread; and a fingerprint of the model itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import Prepared

SAMPLED = 4096
"""Numbers of each tensor that a fingerprint looks at, besides the sum of all."""
SHORTEST = 10
"""Tokens of a row that gptqmodel looks at, at least."""


@dataclass(frozen=True)
class Chosen:
    """Rows of ids, and how many tokens of them the model has no row for in its embedding and that were left out."""

    rows: list[list[int]]
    left_out: int


def choose_rows(data: Prepared, count: int, length: int, known: int) -> Chosen:
    """The ids of `count` rows, evenly spread over the data, the first `length` tokens of each.

    Of pairs and groups the first sequence. Tokens from `known` on, the rows of the model's embedding, are left out: a
    vocabulary may have grown since, and gptqmodel would put something else in their place. Rows of fewer than 10 tokens
    are passed over. TunekitError where none is left.
    """
    step = max(1, data.size // count) if data.size else 1
    chosen: list[list[int]] = []
    left_out = 0
    for number, item in enumerate(data):
        if len(chosen) == count:
            break
        if number % step:
            continue
        every = [int(token) for token in item.sequences[0].ids]
        at = [place for place, token in enumerate(every) if token < known][:length]
        if len(at) >= SHORTEST:
            chosen.append([every[place] for place in at])
            left_out += at[-1] + 1 - len(at)
    if not chosen:
        what = f"the data of the first stage has no row of {SHORTEST} tokens or more to quantise by"
        raise TunekitError(what, "add longer rows, or name a model that is quantised already")
    return Chosen(chosen, left_out)


def rows_of_embedding(model: Any) -> int:
    """How many tokens a model knows."""
    return int(model.get_input_embeddings().weight.shape[0])


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
