"""The log-probabilities that the reference gives to sequences, kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from tunekit.values import TokenSequence

from .digests import add_weight, weights_of
from .heads import is_head
from .kept_file import KeptFile


class ReferenceFile(KeptFile):
    """Log-probabilities of the supervised tokens, float32 [supervised] of each sequence."""

    missing = (
        "was not there when the reference log-probabilities were computed",
        "let the stage make all sequences before it trains, or train a fresh adapter",
    )

    @staticmethod
    def content(sequence: TokenSequence) -> bytes:
        """The tokens, and which of them are supervised."""
        ids, supervised = np.asarray(sequence.ids, np.int64), np.asarray(sequence.weights) != 0
        return len(ids).to_bytes(8, "little") + ids.tobytes() + np.packbits(supervised).tobytes()


def fingerprint_of(model: Any, sequences: Iterable[TokenSequence]) -> str:
    """Changes with the sequences, with any weight that trains, and with frozen weights that are not the same.

    Neither value heads count, nor adapters that are not active: they have no part in what the policy says.
    """
    others = {f".{name}" for name in getattr(model, "peft_config", {}) if name not in model.active_adapters}
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(ReferenceFile.key(sequence))
    for name, parameter in weights_of(model):
        if is_head(name) or any(f"{other}." in name or name.endswith(other) for other in others):
            continue
        add_weight(digest, name, parameter, whole=parameter.requires_grad)
    return digest.hexdigest()
