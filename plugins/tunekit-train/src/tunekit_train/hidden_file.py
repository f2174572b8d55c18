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
    def content(sequence: TokenSequence) -> bytes:
        """The tokens alone."""
        return np.asarray(sequence.ids, np.int64).tobytes()


def fingerprint_of(model: Any, count: int, autocast: str, sequences: Iterable[TokenSequence]) -> str:
    """Changes with the sequences, the number of layers, the dtype of products, and the weights that are frozen."""
    digest = hashlib.sha256(f"{count} {autocast}".encode())
    for sequence in sequences:
        digest.update(HiddenFile.key(sequence))
    for name, parameter in weights_of(model):
        if not parameter.requires_grad:
            add_weight(digest, name, parameter, whole=False)
    return digest.hexdigest()
