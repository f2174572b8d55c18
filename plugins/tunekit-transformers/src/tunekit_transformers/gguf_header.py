"""The header of a GGUF file: its metadata and the table of its tensors, without their values.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Versions 2, 3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 30: (1, 2),
}  # fmt: skip
"""Elements and bytes of a block, by ggml type; other types exist."""
UNQUANTIZED = {0: "float32", 1: "float16", 30: "bfloat16"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: its name, its shape (slowest axis first), its ggml type number, its bytes into the data section."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int

    @property
    def bytes(self) -> int:
        """How much of the file it takes; 0 where its type is not known here."""
        elements, size = BLOCKS.get(self.ggml_type, (1, 0))
        return prod(self.shape) // elements * size


@dataclass(frozen=True)
class GgufHeader:
    """Metadata (arrays of strings only as their length) and tensors of a GGUF file.

    `entries` tells where in the file each metadata entry stands, `tensor_table` where the table of tensors does.
    """

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    entries: dict[str, slice]
    tensor_table: slice

    @property
    def parameters(self) -> int:
        """How many numbers the file holds; tied weights are stored once."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def float_type(self) -> str | None:
        """The dtype of the matrices where they are not quantised, None where they are."""
        types = {tensor.ggml_type for tensor in self.tensors if len(tensor.shape) > 1}
        return UNQUANTIZED[min(types)] if types and types <= set(UNQUANTIZED) else None


def write_without_vocabulary(path: Path, target: Path) -> None:
    """Write a copy whose vocabulary and weights are left out, the latter as a hole of the same size.

    gguf's own reader needs seconds for a vocabulary, and what a model looks like can be read without. A file that does
    not state its vocabulary's size keeps it.
    """
    header = read_header(path)
    architecture = header.metadata["general.architecture"]
    drop = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")
    sized = f"{architecture}.vocab_size" in header.metadata
    kept = [place for key, place in header.entries.items() if not (sized and key in drop)]
    with path.open("rb") as file:
        data = file.read(header.tensor_table.stop)
    with target.open("wb") as file:
        file.write(data[:16] + struct.pack("<Q", len(kept)))
        file.writelines(data[place] for place in [*kept, header.tensor_table])
        file.truncate(path.stat().st_size)


def read_header(path: Path) -> GgufHeader:
    """Read the header; ValueError says what is wrong with the file."""
    if path.stat().st_size < 24:
        raise ValueError("it is shorter than a header")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data).header()
        except struct.error as error:
            raise ValueError("it ends in the middle of its header") from error


class _Reader:
    """A position that moves through the bytes."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def header(self) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not start with the letters GGUF")
        self.position = 4
        version = self.number("I")
        if version not in (2, 3):
            raise ValueError(f"it is GGUF version {version}; versions 2 and 3 are known")
        count, entries = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        places: dict[str, slice] = {}
        for _ in range(entries):
            start, key = self.position, self.string()
            metadata[key] = self.value(self.number("I"))
            places[key] = slice(start, self.position)
        if "general.architecture" not in metadata:
            raise ValueError("it names no architecture")
        start, tensors = self.position, tuple(self.tensor() for _ in range(count))
        if self.position + max((tensor.offset + tensor.bytes for tensor in tensors), default=0) > len(self.data):
            raise ValueError("it is cut off: some tensors lie beyond its end")
        return GgufHeader(metadata, tensors, places, slice(start, self.position))

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        length = self.number("Q")
        self.position += length
        if self.position > len(self.data):
            raise ValueError("it ends in the middle of its header")
        return self.data[self.position - length : self.position].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"its metadata holds a value of unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner == STRING:
            for _ in range(count):
                length = self.number("Q")
                self.position += length
            return count
        return [self.value(inner) for _ in range(count)]

    def tensor(self) -> GgufTensor:
        name = self.string()
        shape = tuple(self.number("Q") for _ in range(self.number("I")))[::-1]
        return GgufTensor(name, shape, ggml_type=self.number("I"), offset=self.number("Q"))
