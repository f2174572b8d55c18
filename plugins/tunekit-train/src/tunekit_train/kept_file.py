"""One tensor for each of many sequences, kept in a memory-mapped file and found by what the sequence holds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from tunekit.errors import DataError, Problem
from tunekit.values import TokenSequence

VERSION = 2
"""Changes whenever the files do."""
MANIFEST, VALUES = "manifest.json", "values"
KEY = np.dtype("S16")
INDEX = ("keys", "starts", "lengths")

File = TypeVar("File", bound="KeptFile")


class KeptFile(ABC):
    """A folder with tensors of one dtype that differ in their first dimension only; mapped, never read as a whole.

    Sequences of the same `content` share one. `missing` says of a sequence without one what is wrong, and what to do.
    """

    missing: ClassVar[tuple[str, str]]

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.fingerprint = folder, manifest["fingerprint"]
        self._keys, self._starts, self._lengths = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in INDEX)
        self.rows = int(self._lengths.sum())
        """How long all tensors are together."""
        shape, dtype = (self.rows, *manifest["shape"]), getattr(torch, manifest["dtype"])
        size = int(np.prod(shape))
        mapped = torch.from_file(str(folder / VALUES), size=size, dtype=dtype) if size else torch.empty(0, dtype=dtype)
        self._values = mapped.view(shape)

    @staticmethod
    @abstractmethod
    def content(sequence: TokenSequence) -> bytes:
        """What of a sequence decides on its tensor."""

    @classmethod
    def key(cls, sequence: TokenSequence) -> bytes:
        """What the tensor of a sequence is found by: 16 bytes, the last one not zero, which numpy would drop."""
        return hashlib.blake2b(cls.content(sequence), digest_size=15).digest() + b"\x01"

    @property
    def sequences(self) -> int:
        """How many different sequences it holds."""
        return len(self._keys)

    @property
    def bytes(self) -> int:
        """The size of the tensors."""
        return self._values.numel() * self._values.element_size()

    def read(self, sequence: TokenSequence) -> Tensor:
        """The tensor of a sequence, in the file: not to be written to. Raises DataError for a sequence without one."""
        wanted = np.array(self.key(sequence), KEY)
        at = int(np.searchsorted(self._keys, wanted))
        if at == len(self._keys) or self._keys[at] != wanted:
            raise DataError([Problem(sequence.where, *self.missing)])
        start = int(self._starts[at])
        return self._values[start : start + int(self._lengths[at])]

    @classmethod
    def find(cls: type[File], folder: Path, fingerprint: str) -> File | None:
        """Open the folder where it is whole and of this fingerprint."""
        try:
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError):
            return None
        said = (manifest.get("version"), manifest.get("fingerprint"))
        return cls(folder, manifest) if said == (VERSION, fingerprint) else None

    @classmethod
    def make(cls: type[File], folder: Path, fingerprint: str, seen: Iterable[tuple[TokenSequence, Tensor]]) -> File:
        """Write what comes, one at least, beside, and rename it once it is whole.

        What a kill left half written is begun anew.
        """
        partial = folder.with_name(f".partial-{folder.name}")
        for path in (partial, folder):
            shutil.rmtree(path, ignore_errors=True)
        partial.mkdir(parents=True)
        lengths: dict[bytes, int] = {}
        with (partial / VALUES).open("wb") as file:
            for sequence, values in seen:
                if (key := cls.key(sequence)) not in lengths:
                    lengths[key] = len(values)
                    file.write(values.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        assert lengths, "one sequence at least"
        _write_index(partial, lengths)
        form = {"dtype": str(values.dtype).removeprefix("torch."), "shape": list(values.shape[1:])}
        (partial / MANIFEST).write_text(json.dumps({"version": VERSION, "fingerprint": fingerprint, **form}))
        _flush(partial)
        partial.rename(folder)
        found = cls.find(folder, fingerprint)
        assert found is not None, "what was just written is found"
        return found

    def delete(self) -> None:
        """Remove it from the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write_index(folder: Path, lengths: dict[bytes, int]) -> None:
    keys, sizes = np.array(list(lengths), KEY), np.array(list(lengths.values()), np.int64)
    order = np.argsort(keys, kind="stable")
    starts = np.cumsum(sizes) - sizes
    for name, values in zip(INDEX, (keys, starts, sizes), strict=True):
        np.save(folder / f"{name}.npy", values[order])


def _flush(folder: Path) -> None:
    """Have the files of a folder, and the folder, on the disk."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
