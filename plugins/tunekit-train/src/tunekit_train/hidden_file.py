"""The hidden states of sequences, kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from tunekit.values import TokenSequence

from .digests import add_weight, weights_of
from .kept_file import KeptFile


class HiddenFile(KeptFile):
    """Hidden states, [tokens, hidden size] of each sequence."""

    missing = ("was not there when the frozen layers were computed", "set compute.frozen_layers: never")

    @staticmethod
    def key(sequence: TokenSequence) -> bytes:
        """From the tokens alone."""
        ids = np.asarray(sequence.ids, np.int64)
        return hashlib.blake2b(ids.tobytes(), digest_size=15).digest() + b"\x01"


def fingerprint_of(model: Any, count: int, autocast: str, sequences: Iterable[TokenSequence]) -> str:
    """Changes with the sequences, the number of layers, the dtype of products, and the weights that are frozen."""
    digest = hashlib.sha256(f"{count} {autocast}".encode())
    for sequence in sequences:
        digest.update(HiddenFile.key(sequence))
    for name, parameter in weights_of(model):
        if not parameter.requires_grad:
            add_weight(digest, name, parameter, whole=False)
    return digest.hexdigest()
