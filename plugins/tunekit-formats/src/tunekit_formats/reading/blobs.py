"""Blobs: bytes that can be read from the start again and again, whether a file, an archive's member or far away."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

BUFFER = 1 << 18
"""Bytes read at a time."""

SETTLED = 2.0
"""Seconds after which a file that has not changed is trusted to change its time stamp with the next change."""

IN_MEMORY = 1 << 26
"""Bytes of a stream held in memory before the rest goes to a temporary file, where a format has to jump about."""

_known: dict[tuple[object, ...], str] = {}


@dataclass(frozen=True)
class Blob:
    """Bytes with a name. `open` starts at the first byte; `jumps` tells that its streams can seek at no cost.

    `path` is where the bytes lie as they are, if they are a file here.
    """

    name: str
    open: Callable[[], AbstractContextManager[BinaryIO]]
    fingerprint: Callable[[], str]
    jumps: bool = False
    path: Path | None = None


def file_blob(path: Path, name: str) -> Blob:
    """A file here; `name` is what messages call it."""

    @contextmanager
    def open_file() -> Iterator[BinaryIO]:
        with path.open("rb", buffering=BUFFER) as file:
            yield file

    return Blob(name, open_file, lambda: _sha256_of_file(path), jumps=True, path=path)


@contextmanager
def jumping(blob: Blob) -> Iterator[BinaryIO]:
    """Open a blob so that it can be read in any order; a stream that only runs forward is copied first."""
    with blob.open() as stream:
        if blob.jumps:
            yield stream
            return
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as copy:
            shutil.copyfileobj(stream, copy, BUFFER)
            copy.seek(0)
            yield cast(BinaryIO, copy)


def sha256(stream: IO[bytes]) -> str:
    """SHA-256 of what is left of a stream."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _sha256_of_file(path: Path) -> str:
    """SHA-256 of the bytes of a file, worked out once in a process as long as the file stays as it is."""
    state = path.stat()
    key = (path.resolve(), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev)
    if key not in _known:
        with path.open("rb", buffering=0) as file:
            fingerprint = sha256(file)
        if time.time() - max(state.st_mtime, state.st_ctime) < SETTLED:
            return fingerprint
        _known[key] = fingerprint
    return _known[key]
