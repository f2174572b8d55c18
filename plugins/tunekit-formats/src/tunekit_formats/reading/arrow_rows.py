"""Parquet, Arrow and Feather, through pyarrow, read in batches."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunekit.values import Row

from ..problems import data_error
from .blobs import Blob, jumping
from .tables import Pass

BATCH = 1024
"""Rows turned into Python values at a time."""


Opened = tuple[tuple[str, ...], Iterator[Any]]
"""The columns and the batches."""


def read_parquet(blob: Blob) -> Pass:
    """The rows of a Parquet file."""
    with _parquet(blob) as (_, batches):
        yield from _rows(batches, blob)


def parquet_columns(blob: Blob) -> tuple[str, ...]:
    """The columns that the end of a Parquet file names."""
    with _parquet(blob) as (columns, _):
        return columns


def read_arrow(blob: Blob) -> Pass:
    """The rows of an Arrow stream or an Arrow file; Feather is the latter."""
    with _arrow(blob) as (_, batches):
        yield from _rows(batches, blob)


def arrow_columns(blob: Blob) -> tuple[str, ...]:
    """The columns that an Arrow stream or file names."""
    with _arrow(blob) as (columns, _):
        return columns


def import_pyarrow(name: str, module: str = "pyarrow") -> Any:
    """Import pyarrow. Raises DataError, saying how to install it, where it is not there."""
    try:
        importlib.import_module("pyarrow")
        return importlib.import_module(module)
    except ImportError as error:
        raise data_error(name, "needs pyarrow to be read", "`pip install tunekit-formats[parquet]`") from error


@contextmanager
def _parquet(blob: Blob) -> Iterator[Opened]:
    parquet = import_pyarrow(blob.name, "pyarrow.parquet")
    with jumping(blob) as stream:
        try:
            file = parquet.ParquetFile(stream if blob.path is None else blob.path)
            names = file.schema_arrow.names
        except _failures() as error:
            raise data_error(
                blob.name, f"is not Parquet: {_first(error)}", "check that the file is complete"
            ) from error
        with file:
            yield _unique(names, blob), file.iter_batches(batch_size=BATCH)


@contextmanager
def _arrow(blob: Blob) -> Iterator[Opened]:
    arrow, ipc = import_pyarrow(blob.name), import_pyarrow(blob.name, "pyarrow.ipc")
    with jumping(blob) as stream, _native(arrow, stream, blob) as file:
        start = file.read(6)
        file.seek(0)
        if start[:4] == b"FEA1":
            raise data_error(blob.name, "is Feather of version 1", "write it as version 2, or as Parquet")
        try:
            reader = ipc.open_file(file) if start == b"ARROW1" else ipc.open_stream(file)
            names = reader.schema.names
        except _failures() as error:
            raise data_error(blob.name, f"is not Arrow: {_first(error)}", "check that the file is complete") from error
        yield _unique(names, blob), _pieces(reader)


def _pieces(reader: Any) -> Iterator[Any]:
    """The batches of a stream or a file in small pieces, since a batch may be as long as it likes."""
    is_file = hasattr(reader, "num_record_batches")
    batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader
    return (batch.slice(start, BATCH) for batch in batches for start in range(0, batch.num_rows, BATCH))


def _native(arrow: Any, stream: Any, blob: Blob) -> Any:
    return arrow.PythonFile(stream, mode="r") if blob.path is None else arrow.OSFile(str(blob.path))


def _rows(batches: Iterator[Any], blob: Blob) -> Pass:
    before = 0
    while True:
        try:
            batch = next(batches, None)
            rows = [] if batch is None else _values(batch)
        except _failures() as error:
            raise data_error(blob.name, f"is not whole: {_first(error)}", "check that the file is complete") from error
        if batch is None:
            return
        for number, values in enumerate(rows, before + 1):
            yield Row(number, f"{blob.name}, row {number}", values)
        before += len(rows)


def _values(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch, which is checked first: reading through wrong offsets would end the process."""
    batch.validate(full=True)
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows


def _unique(names: list[str], blob: Blob) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise data_error(blob.name, f"names the column {twice[0]!r} twice", "give each column its own name")
    return tuple(names)


def _failures() -> tuple[type[Exception], ...]:
    """What pyarrow raises at a broken file."""
    return (OSError, ValueError, EOFError, importlib.import_module("pyarrow").ArrowException)


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
