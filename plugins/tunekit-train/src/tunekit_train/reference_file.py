"""Log-probabilities kept in a memory-mapped file, found by the tokens of the sequence that they belong to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tunekit.errors import DataError, Problem
from tunekit.values import TokenSequence

from .digests import add_weight, weights_of
from .heads import is_head

VERSION = 1
MANIFEST = "manifest.json"
KEY = np.dtype("S16")

Floats = npt.NDArray[np.float32]


class Scored(NamedTuple):
    """A sequence, and the log-probabilities of its supervised tokens, float32 [supervised]."""

    key: bytes
    log_probs: Floats


class ReferenceFile:
    """A folder with the log-probabilities of many sequences, one after the other, sorted by their keys."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.fingerprint = folder, manifest["fingerprint"]
        self._keys = np.load(folder / "keys.npy", mmap_mode="r")
        self._starts = np.load(folder / "starts.npy", mmap_mode="r")
        self._log_probs = np.load(folder / "log_probs.npy", mmap_mode="r")

    @property
    def sequences(self) -> int:
        """How many different sequences it holds."""
        return len(self._keys)

    @property
    def tokens(self) -> int:
        """How many supervised tokens it holds."""
        return len(self._log_probs)

    def read(self, sequences: Sequence[TokenSequence]) -> Floats:
        """The log-probabilities of these sequences, one after the other, float32 [supervised]."""
        parts = [self._one(key, each) for key, each in zip(keys_of(sequences), sequences, strict=True)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _one(self, key: bytes, sequence: TokenSequence) -> Floats:
        wanted = np.array(key, KEY)
        at = int(np.searchsorted(self._keys, wanted))
        if at == len(self._keys) or self._keys[at] != wanted:
            reason = "was not there when the reference log-probabilities were computed"
            remedy = "let the stage make all sequences before it trains, or train a fresh adapter"
            raise DataError([Problem(sequence.where, reason, remedy)])
        return np.array(self._log_probs[self._starts[at] : self._starts[at + 1]])

    @classmethod
    def find(cls, folder: Path, fingerprint: str) -> ReferenceFile | None:
        """Open the folder where it is whole and of this fingerprint."""
        manifest = manifest_of(folder, VERSION, fingerprint)
        return None if manifest is None else cls(folder, manifest)

    @classmethod
    def make(cls, folder: Path, fingerprint: str, scored: Iterable[Scored]) -> ReferenceFile:
        """Write what comes, beside, and rename it once it is whole; what a kill left half written is begun anew."""
        partial = folder.with_name(f".partial-{folder.name}")
        for path in (partial, folder):
            shutil.rmtree(path, ignore_errors=True)
        partial.mkdir(parents=True)
        # A fixed-size header would need the number of tokens beforehand: raw first, in the order of the pass.
        keys, lengths = _write_raw(partial / "raw", scored)
        order = np.argsort(keys, kind="stable")
        raw = np.memmap(partial / "raw", np.float32, "r") if lengths.sum() else np.empty(0, np.float32)
        first = np.cumsum(lengths) - lengths
        _save(partial / "keys.npy", keys[order])
        _save(partial / "starts.npy", np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64))
        shape = (int(lengths.sum()),)
        target = np.lib.format.open_memmap(partial / "log_probs.npy", "w+", np.float32, shape)  # type: ignore[no-untyped-call]
        place = 0
        for at in order:
            target[place : place + lengths[at]] = raw[first[at] : first[at] + lengths[at]]
            place += lengths[at]
        target.flush()
        (partial / "raw").unlink()
        (partial / MANIFEST).write_text(json.dumps({"version": VERSION, "fingerprint": fingerprint}))
        flush(partial)
        partial.rename(folder)
        found = cls.find(folder, fingerprint)
        assert found is not None, "what was just written is found"
        return found


def manifest_of(folder: Path, version: int, fingerprint: str) -> dict[str, Any] | None:
    """The manifest of a folder that is whole, of this version and of this fingerprint; else None."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if (manifest.get("version"), manifest.get("fingerprint")) == (version, fingerprint) else None


def keys_of(sequences: Iterable[TokenSequence]) -> list[bytes]:
    """A key of 16 bytes for each sequence: from its tokens, and from which of them are supervised.

    The last byte is never zero: numpy takes zeros at the end of such a text for nothing.
    """
    return [_key(sequence) for sequence in sequences]


def _key(sequence: TokenSequence) -> bytes:
    ids, supervised = np.asarray(sequence.ids, np.int64), np.asarray(sequence.weights) != 0
    digest = hashlib.blake2b(len(ids).to_bytes(8, "little"), digest_size=15)
    digest.update(ids.tobytes())
    digest.update(np.packbits(supervised).tobytes())
    return digest.digest() + b"\x01"


def fingerprint_of(model: Any, sequences: Iterable[TokenSequence]) -> str:
    """Changes with the sequences, with any weight that trains, and with frozen weights that are not the same.

    Neither value heads count, nor adapters that are not active: they have no part in what the policy says.
    """
    others = {f".{name}" for name in getattr(model, "peft_config", {}) if name not in model.active_adapters}
    digest = hashlib.sha256()
    for key in keys_of(sequences):
        digest.update(key)
    for name, parameter in weights_of(model):
        if is_head(name) or any(f"{other}." in name or name.endswith(other) for other in others):
            continue
        add_weight(digest, name, parameter, whole=parameter.requires_grad)
    return digest.hexdigest()


def _write_raw(path: Path, scored: Iterable[Scored]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Write log-probabilities one after the other, each sequence once; returns keys and lengths in that order."""
    lengths: dict[bytes, int] = {}
    with path.open("wb") as file:
        for key, log_probs in scored:
            if key not in lengths:
                lengths[key] = len(log_probs)
                file.write(np.ascontiguousarray(log_probs, np.float32).tobytes())
    return np.array(list(lengths), KEY), np.array(list(lengths.values()), np.int64)


def _save(path: Path, values: npt.NDArray[Any]) -> None:
    np.save(path, values)


def flush(folder: Path) -> None:
    """Have the files of a folder, and the folder, on the disk."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
