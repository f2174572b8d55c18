"""Files far away: `s3://`, `gs://`, `hf://`, `https://` and whatever else fsspec knows; it is imported only here."""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from tunekit.errors import nearest
from tunekit.values import Source

from ..problems import data_error, listed, place
from .blobs import BUFFER, Blob, sha256
from .folders import open_files
from .single import open_single
from .tables import Table

PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp",
    "https": "aiohttp", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "adl": "adlfs", "oci": "ocifs",
    "oss": "ossfs", "sftp": "paramiko", "ssh": "paramiko", "webdav": "webdav4", "hdfs": "pyarrow",
}  # fmt: skip
"""The package that brings each protocol."""

TAGS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "sha256", "blob_id", "checksum", "version_id", "generation")
"""What file systems call the mark that changes with the content of a file."""

TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "Last-Modified")
"""What they call the time of its last change."""


def is_remote(path: str) -> bool:
    """Whether a path is an address such as `s3://bucket/rows.jsonl`."""
    return "://" in path


def open_remote(source: Source, split: str) -> Table:
    """Open a file, an archive or a folder at an address.

    Raises DataError: a protocol that is unknown or whose package is not installed, nothing there, or as for files here.
    """
    address = source.path or ""
    fsspec = _fsspec(source)
    with _reaching(place(source), address):
        filesystem, path = fsspec.url_to_fs(address)
        info = filesystem.info(path)
        listing = filesystem.find(path, detail=True) if info["type"] == "directory" else None
    if listing is not None:
        blobs = [_folder_blob(filesystem, path, listing[found], address) for found in sorted(listing)]
        return open_files(blobs, source, split, f"the folder {address!r}")
    return open_single(_blob(filesystem, path, info, address), _file_name(address), source, split)


def _fsspec(source: Source) -> Any:
    try:
        return importlib.import_module("fsspec.core")
    except ImportError as error:
        message = "needs fsspec to be read"
        raise data_error(place(source), message, "`pip install tunekit-formats[cloud]`") from error


@contextmanager
def _reaching(where: str, address: str) -> Iterator[None]:
    """Say what is wrong where an address cannot be reached."""
    try:
        yield
    except Exception as error:  # the package of each protocol raises errors of its own
        raise data_error(where, *_unreachable(address.partition("://")[0], error)) from error


def _unreachable(protocol: str, error: Exception) -> tuple[str, str]:
    """What is wrong, and what to do."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, ImportError):
        remedy = f"`pip install {PACKAGES[protocol]}`" if protocol in PACKAGES else reason
        return f"the protocol {protocol}:// needs a package that is not installed", remedy
    if isinstance(error, ValueError) and "Protocol not known" in reason:
        known = importlib.import_module("fsspec").available_protocols()
        close = nearest(protocol, known)
        hint = f"did you mean {close}://?" if close else f"use one of {listed(known)}"
        return f"the protocol {protocol}:// is not known to fsspec", hint
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder", "check the address and your access to it"
    return f"cannot be reached: {reason}", "check the address, the network and your access to it"


def _file_name(address: str) -> str:
    """The file's name: `rows.json` of `https://host/rows.json?a=1` and of `zip://rows.json::s3://bucket/a.zip`."""
    first = address.partition("::")[0]
    return PurePosixPath(urlsplit(first).path if first.startswith("http") else first).name


def _folder_blob(filesystem: Any, folder: str, entry: Mapping[str, Any], address: str) -> tuple[str, Blob]:
    name = str(entry["name"]).removeprefix(folder.rstrip("/")).lstrip("/")
    return name, _blob(filesystem, str(entry["name"]), entry, f"{address.rstrip('/')}/{name}")


def _blob(filesystem: Any, path: str, info: Mapping[str, Any], name: str) -> Blob:
    @contextmanager
    def open_file() -> Iterator[BinaryIO]:
        with _reaching(name, name):
            file = filesystem.open(path, "rb")
        with file:
            yield _buffered(file)

    def fingerprint() -> str:
        if (state := _state(info)) is not None:
            return hashlib.sha256(f"{name}\n{state}".encode()).hexdigest()
        with open_file() as stream:
            return sha256(stream)

    jumps = info.get("size") is not None and bool(info.get("partial", True))
    return Blob(name, open_file, fingerprint, jumps=jumps)


def _buffered(file: Any) -> BinaryIO:
    if isinstance(file, io.BytesIO):  # a file in memory is one object, with one position, for all who open it
        return io.BytesIO(file.getvalue())
    return cast(BinaryIO, file if isinstance(file, io.BufferedIOBase) else io.BufferedReader(file, BUFFER))


def _state(info: Mapping[str, Any]) -> str | None:
    """What tells one state of a file from another: its tag, or its time and size; None where it has neither."""
    mark = next((f"{key}={info[key]}" for key in (*TAGS, *TIMES) if info.get(key)), None)
    return None if mark is None else f"{mark} size={info.get('size')}"
