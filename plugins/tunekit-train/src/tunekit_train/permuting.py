"""Random orders that are the same on every machine and with every version of a library."""

from __future__ import annotations

import hashlib

import numpy as np

from .items import Indices


def permutation(count: int, seed: str) -> Indices:
    """The numbers below `count` in an order that follows from `seed` alone.

    It is the order of raw draws of a bit generator: numpy promises that these stay the same, and promises nothing for
    its own `permutation`.
    """
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "big")
    return np.argsort(np.random.PCG64(number).random_raw(count), kind="stable")
