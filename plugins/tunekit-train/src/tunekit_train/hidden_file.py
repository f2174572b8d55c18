"""Hidden states kept in a memory-mapped file, found by the tokens of the sequence that they belong to."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tunekit.errors import DataError, Problem
from tunekit.values import TokenSequence

from .digests import add_weight, weights_of
from .items import Indices
from .reference_file import KEY, MANIFEST, flush, manifest_of

VERSION = 1


class Seen(NamedTuple):
    """A sequence, and its hidden states [tokens, hidden size]."""

    key: bytes
    hidden: Tensor


class HiddenFile:
    """A folder with the hidden states of many sequences, one after the other; mapped, never read as a whole."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.fingerprint = folder, manifest["fingerprint"]
        self._keys, self._starts, self._lengths = (np.load(folder / f"{name}.npy") for name in _INDEX)
        dtype, width = getattr(torch, manifest["dtype"]), manifest["width"]
        size = int(self._lengths.sum()) * width
        self._hidden = torch.from_file(str(folder / "hidden"), size=size, dtype=dtype).view(-1, width)

    @property
    def sequences(self) -> int:
        """How many different sequences it holds."""
        return len(self._keys)

    @property
    def bytes(self) -> int:
        """The size of the hidden states."""
        return self._hidden.numel() * self._hidden.element_size()

    def read(self, sequence: TokenSequence) -> Tensor:
        """The hidden states of a sequence, [tokens, hidden size], in the file: not to be written to."""
        wanted = np.array(key_of(sequence), KEY)
        at = int(np.searchsorted(self._keys, wanted))
        if at == len(self._keys) or self._keys[at] != wanted:
            reason = "was not there when the frozen layers were computed"
            raise DataError([Problem(sequence.where, reason, "set compute.frozen_layers: never")])
        start = int(self._starts[at])
        return self._hidden[start : start + int(self._lengths[at])]

    @classmethod
    def find(cls, folder: Path, fingerprint: str) -> HiddenFile | None:
        """Open the folder where it is whole and of this fingerprint."""
        manifest = manifest_of(folder, VERSION, fingerprint)
        return None if manifest is None else cls(folder, manifest)

    @classmethod
    def make(cls, folder: Path, fingerprint: str, seen: Iterable[Seen]) -> HiddenFile:
        """Write what comes, beside, and rename it once it is whole; what a kill left half written is begun anew."""
        partial = folder.with_name(f".partial-{folder.name}")
        for path in (partial, folder):
            shutil.rmtree(path, ignore_errors=True)
        partial.mkdir(parents=True)
        lengths: dict[bytes, int] = {}
        with (partial / "hidden").open("wb") as file:
            for key, hidden in seen:
                if key not in lengths:
                    lengths[key] = len(hidden)
                    file.write(hidden.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        _write_index(partial, lengths)
        form = {"dtype": str(hidden.dtype).removeprefix("torch."), "width": hidden.shape[-1]}
        (partial / MANIFEST).write_text(json.dumps({"version": VERSION, "fingerprint": fingerprint, **form}))
        flush(partial)
        partial.rename(folder)
        found = cls.find(folder, fingerprint)
        assert found is not None, "what was just written is found"
        return found

    def delete(self) -> None:
        """Remove it from the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


_INDEX = ("keys", "starts", "lengths")


def key_of(sequence: TokenSequence) -> bytes:
    """A key of 16 bytes, from the tokens alone; never one that ends with a zero, which numpy would drop."""
    ids = np.asarray(sequence.ids, np.int64)
    return hashlib.blake2b(ids.tobytes(), digest_size=15).digest() + b"\x01"


def fingerprint_of(model: Any, count: int, autocast: str, sequences: Iterable[TokenSequence]) -> str:
    """Changes with the sequences, the number of layers, the dtype of products, and the weights that are frozen."""
    digest = hashlib.sha256(f"{count} {autocast}".encode())
    for sequence in sequences:
        digest.update(key_of(sequence))
    for name, parameter in weights_of(model):
        if not parameter.requires_grad:
            add_weight(digest, name, parameter, whole=False)
    return digest.hexdigest()


def _write_index(folder: Path, lengths: dict[bytes, int]) -> None:
    keys, sizes = np.array(list(lengths), KEY), np.array(list(lengths.values()), np.int64)
    order: Indices = np.argsort(keys, kind="stable")
    starts = np.cumsum(sizes) - sizes
    for name, values in zip(_INDEX, (keys, starts, sizes), strict=True):
        np.save(folder / f"{name}.npy", values[order])


def tokens_of(sequences: Sequence[TokenSequence]) -> int:
    """Tokens of these sequences."""
    return sum(len(sequence) for sequence in sequences)
