"""Archives: the files in a zip or a tar, each read as a stream and none unpacked to disk."""

from __future__ import annotations

import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from tunekit.values import Source

from ..problems import data_error
from .blobs import Blob, jumping
from .compression import decompress, inner_name
from .files import UNREADABLE, unreadable
from .folders import hidden, open_files
from .tables import Table

SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}
"""Short suffixes of compressed tar files, and the long ones."""

_DAMAGED = (ValueError, KeyError, IndexError, OverflowError, RuntimeError, struct.error)
"""What zipfile and tarfile let through where an archive is damaged."""

_known: dict[str, list[str]] = {}
"""The files in archives by the fingerprint of the archive, since a tar has to be run through for them."""


def is_archive(name: str) -> bool:
    """Whether a file is an archive, by its name."""
    return PurePosixPath(inner_name(_long(name))).suffix.lower() in (".zip", ".tar")


def open_archive(blob: Blob, name: str, source: Source, split: str) -> Table:
    """Open the files of one split in an archive. Raises DataError: damaged, locked, or as for a folder."""
    long = _long(name)
    zipped = PurePosixPath(long).suffix.lower() == ".zip"
    names, open_member = (_names_in_zip, _open_in_zip) if zipped else (_names_in_tar, _open_in_tar)
    packed = decompress(blob, long)
    try:
        state = blob.fingerprint()
        if state not in _known:
            _known[state] = sorted(member for member in names(packed) if not hidden(member))
        found = _known[state]
    except UNREADABLE as error:
        raise unreadable(blob.name, error) from error
    twice = next((member for member, following in pairwise(found) if member == following), None)
    if twice is not None:
        raise data_error(blob.name, f"holds the file {twice} twice", "pack it once")
    files = [(member, _member(packed, member, open_member)) for member in found]
    return open_files(files, source, split, f"the archive {source.path!r}")


def _long(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    return name[: -len(suffix)] + SHORT[suffix] if suffix in SHORT else name


Opener = Callable[[Blob, str], AbstractContextManager[BinaryIO]]


def _member(archive: Blob, member: str, open_member: Opener) -> Blob:
    return Blob(
        f"{archive.name}/{member}",
        lambda: open_member(archive, member),
        lambda: f"{archive.fingerprint()}/{member}",
    )


@contextmanager
def _zip(archive: Blob) -> Iterator[zipfile.ZipFile]:
    with jumping(archive) as stream:
        try:
            opened = zipfile.ZipFile(stream)
        except _DAMAGED as error:
            raise zipfile.BadZipFile(str(error)) from error
        with opened:
            yield opened


def _names_in_zip(archive: Blob) -> list[str]:
    with _zip(archive) as opened:
        return [info.filename for info in opened.infolist() if not info.is_dir()]


@contextmanager
def _open_in_zip(archive: Blob, member: str) -> Iterator[BinaryIO]:
    with _zip(archive) as opened:
        if opened.getinfo(member).flag_bits & 1:
            raise data_error(f"{archive.name}/{member}", "is locked with a password", "give the archive without one")
        try:
            stream = opened.open(member)
        except _DAMAGED as error:
            raise zipfile.BadZipFile(str(error)) from error
        with stream:
            yield cast(BinaryIO, stream)


class _Strict(tarfile.TarInfo):
    """A header of a tar file; one that is damaged or missing is an error, where `tarfile` takes it for the end."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> _Strict:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(f"the archive is cut off or damaged ({error})") from error


@contextmanager
def _tar(archive: Blob) -> Iterator[Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]]:
    """The files of a tar in order, each with the archive it can be read from until the next is asked for."""

    def members(opened: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        try:
            for info in opened:
                if info.isfile():
                    yield info, opened
        except _DAMAGED as error:
            raise tarfile.ReadError(str(error)) from error

    with archive.open() as stream:
        mode = "r:" if archive.jumps else "r|"
        with tarfile.open(fileobj=stream, mode=mode, tarinfo=_Strict) as opened:  # type: ignore[call-overload]
            yield members(opened)


def _names_in_tar(archive: Blob) -> list[str]:
    with _tar(archive) as members:
        return [info.name for info, _ in members]


@contextmanager
def _open_in_tar(archive: Blob, member: str) -> Iterator[BinaryIO]:
    with _tar(archive) as members:
        for info, opened in members:
            if info.name == member and (stream := opened.extractfile(info)) is not None:
                with stream:
                    yield cast(BinaryIO, stream)
                return
    raise tarfile.ReadError(f"{member} is no longer in the archive")
