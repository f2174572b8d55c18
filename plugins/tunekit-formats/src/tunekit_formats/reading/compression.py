"""Compressed files: `rows.jsonl.gz` is read as the file inside it, without unpacking it to disk."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from ..problems import data_error
from .blobs import BUFFER, Blob


def inner_name(name: str) -> str:
    """The name without the suffix of its compression: `rows.jsonl` of `rows.jsonl.gz`."""
    return name[: -len(_suffix(name))] if _suffix(name) in COMPRESSIONS else name


def decompress(blob: Blob, name: str) -> Blob:
    """The file inside a compressed one; any other blob as it is. `name` tells by its suffix which it is.

    Raises DataError where the package for it is not installed.
    """
    start = COMPRESSIONS.get(_suffix(name))
    if start is None:
        return blob
    if start is _zstandard:
        _require_zstandard(blob.name)

    @contextmanager
    def open_inner() -> Iterator[BinaryIO]:
        with blob.open() as outer, start(outer) as inner, io.BufferedReader(inner, BUFFER) as stream:
            yield cast(BinaryIO, stream)

    return Blob(blob.name, open_inner, blob.fingerprint)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _zstandard(stream: BinaryIO) -> io.RawIOBase:
    return _Zstandard(stream)


def _require_zstandard(name: str) -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise data_error(name, "needs zstandard to be read", "`pip install tunekit-formats[zstd]`") from error


class _Zstandard(io.RawIOBase):
    """Frames of Zstandard one after the other; unlike the package's own reader it tells a file that is cut off."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._module = stream, importlib.import_module("zstandard")
        self._frame: Any = None
        self._ready = b""
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._waiting or self._stream.read(BUFFER)
            if not block:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of a Zstandard frame")
                return 0
            self._frame = self._frame or self._module.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(block)
            except self._module.ZstdError as error:
                raise OSError(str(error)) from error
            self._waiting = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstandard,
}
"""How each kind of compressed file is opened, by its suffix."""
