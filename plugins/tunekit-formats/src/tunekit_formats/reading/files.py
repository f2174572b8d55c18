"""Kinds of files: which reader takes one, told by its name; and what is said of one that cannot be read."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from tunekit.errors import DataError

from ..problems import data_error
from .arrow_rows import arrow_columns, parquet_columns, read_arrow, read_parquet
from .blobs import Blob
from .compression import COMPRESSIONS, decompress, inner_name
from .csv_rows import read_csv, read_tsv
from .json_rows import read_json
from .lines import read_text
from .tables import Pass, Table, first_row

UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError)
"""What the standard library raises where bytes cannot be had: no permission, cut off, damaged, packed unknown ways."""


@dataclass(frozen=True)
class FileKind:
    """How files of one kind are read; `columns` reads them from the head of the file where all rows have them."""

    read: Callable[[Blob], Pass]
    columns: Callable[[Blob], tuple[str, ...]] | None = None
    fixed: bool = False


_JSON = FileKind(read_json)
_ARROW = FileKind(read_arrow, arrow_columns, fixed=True)

KINDS: dict[str, FileKind] = {
    ".json": _JSON,
    ".jsonl": _JSON,
    ".csv": FileKind(read_csv, fixed=True),
    ".tsv": FileKind(read_tsv, fixed=True),
    ".parquet": FileKind(read_parquet, parquet_columns, fixed=True),
    ".arrow": _ARROW,
    ".feather": _ARROW,
    ".txt": FileKind(read_text),
    ".ndjson": _JSON,
}
"""The kinds by suffix."""


def kind_of(name: str) -> FileKind | None:
    """The kind of a file by its name, whether it is compressed or not; None where it is not read."""
    return KINDS.get(PurePosixPath(inner_name(name)).suffix.lower())


def open_file(blob: Blob, name: str, key: str, strict: bool) -> Table:
    """Open one file, of the kind that `name` tells. `strict`: a malformed row at its start is an error at once.

    Raises DataError: an unknown kind, bytes that cannot be read, no rows.
    """
    file_kind = kind_of(name)
    if file_kind is None:
        raise _unknown_kind(blob.name, name, key)
    blob = decompress(blob, name)
    read_rows = file_kind.read

    def read() -> Pass:
        try:
            yield from read_rows(blob)
        except UNREADABLE as error:
            raise unreadable(blob.name, error) from error

    try:
        columns = file_kind.columns(blob) if file_kind.columns else ()
        fingerprint = blob.fingerprint()
    except UNREADABLE as error:
        raise unreadable(blob.name, error) from error
    first = first_row(read, blob.name, strict)
    return Table(columns or tuple(first.values), read, fingerprint, file_kind.fixed)


def unreadable(name: str, error: BaseException) -> DataError:
    """The error where bytes cannot be had."""
    if isinstance(error, OSError) and error.strerror:
        return data_error(name, f"cannot be read: {error.strerror}", "check the file and its permissions")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return data_error(name, f"cannot be read: {reason}", "check that the file is complete")


def _unknown_kind(blob_name: str, name: str, key: str) -> DataError:
    suffix = PurePosixPath(inner_name(name)).suffix or "no suffix"
    packed = ", ".join(COMPRESSIONS)
    return data_error(
        key,
        f"{blob_name} is of a kind ({suffix}) that is not read",
        f"use {', '.join(KINDS)}, or one of {packed} after it",
    )
