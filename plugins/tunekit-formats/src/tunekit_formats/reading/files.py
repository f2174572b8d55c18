"""Files of rows: JSON and JSON Lines, CSV, Parquet, and text with one document per line."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tunekit.errors import DataError

from .problems import data_error, kind
from .tables import Record, Table

Values = Mapping[str, Any]


def open_file(path: Path, name: str, key: str) -> Table:
    """Open one file; `name` is what messages call it. Its rows are read anew on each pass.

    Raises DataError: an unknown kind, a file that cannot be read, no rows.
    """
    reader = KINDS.get(path.suffix.lower())
    if reader is None:
        raise data_error(
            key, f"{name} is of a kind ({path.suffix or 'no suffix'}) that is not read", f"use {', '.join(KINDS)}"
        )

    def read() -> Iterator[Record]:
        try:
            for number, values in enumerate(reader(path, name), 1):
                yield f"{name}, row {number}", values
        except OSError as error:
            raise _unreadable(name, error) from error

    try:
        fingerprint = _sha256(path)
        columns = _columns(path, name) if reader in FIXED else ()
    except OSError as error:
        raise _unreadable(name, error) from error
    first = next(read(), None)
    if first is None:
        raise data_error(name, "holds no rows", "give at least one row")
    return Table(columns or tuple(first[1]), read, fingerprint, fixed=reader in FIXED)


def _unreadable(name: str, error: OSError) -> DataError:
    return data_error(name, f"cannot be read: {error.strerror or error}", "check the file and its permissions")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# Text, decoded line by line so that a wrong byte is found where it stands.


def _lines(path: Path, name: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(name, number, error) from error


def _not_utf8(name: str, line: int, error: UnicodeDecodeError) -> DataError:
    return data_error(
        f"{name}, line {line}", f"is not UTF-8 (byte 0x{error.object[error.start]:02x})", "save the file as UTF-8"
    )


def _text_rows(path: Path, name: str) -> Iterator[Values]:
    return ({"text": line.rstrip("\r\n")} for line in _lines(path, name) if line.strip())


# JSON: a list of objects, or one object per line. The content decides, since both are called .json in the field.


def _json_rows(path: Path, name: str) -> Iterator[Values]:
    first = next((line for line in _lines(path, name) if line.strip()), "")
    return _array(path, name) if first.lstrip().startswith("[") else _json_lines(path, name)


def _json_lines(path: Path, name: str) -> Iterator[Values]:
    for number, line in enumerate(_lines(path, name), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise data_error(where, f"is not JSON: {_why(error)}", _hint(path, name, number)) from error
        yield _object(value, where)


def _hint(path: Path, name: str, line: int) -> str:
    """What to do about a malformed line; a file that is one object over several lines is told apart."""
    try:
        whole = json.loads("".join(_lines(path, name))) if line <= 2 else None
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, Mapping):
        return "the file is one object; write a list of rows ([...]), or one object on each line"
    return "write one complete object on each line, or a list of objects ([...])"


def _array(path: Path, name: str) -> Iterator[Values]:
    """Parse a list item by item, so that the first rows of a long file are there at once."""
    text = "".join(_lines(path, name))
    scan = json.JSONDecoder().raw_decode
    place = _blank(text, text.index("[") + 1)
    number = 0
    more = text[place : place + 1] != "]"
    while more:
        number += 1
        try:
            value, place = scan(text, place)
        except (ValueError, RecursionError) as error:
            _malformed(name, text, error, place)
        yield _object(value, f"{name}, row {number}")
        place = _blank(text, place)
        more = text[place : place + 1] == ","
        if more:
            place = _blank(text, place + 1)
    _require_end(name, text, place)


def _require_end(name: str, text: str, place: int) -> None:
    if text[place : place + 1] != "]":
        _malformed(name, text, ValueError("expected a comma or the end of the list"), place)
    rest = _blank(text, place + 1)
    if rest < len(text):
        _malformed(name, text, ValueError("there is more after the end of the list"), rest)


def _blank(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _malformed(name: str, text: str, error: Exception, place: int) -> NoReturn:
    at = error.pos if isinstance(error, json.JSONDecodeError) else place
    line = text.count("\n", 0, at) + 1
    raise data_error(f"{name}, line {line}", f"is not JSON: {_why(error)}", "correct the file there") from error


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)


def _object(value: Any, where: str) -> Values:
    if not isinstance(value, Mapping):
        raise data_error(where, f"is {kind(value)}, expected an object with columns", 'write {"column": value, ...}')
    return value


# CSV


def _csv_rows(path: Path, name: str) -> Iterator[Values]:
    table = csv.reader(_lines(path, name), delimiter=_delimiter(path), strict=True)
    header: list[str] | None = None
    try:
        for cells in table:
            if header is None:
                header = _header(cells, name)
            elif cells:
                yield _cells(cells, header, f"{name}, line {table.line_num}")
    except csv.Error as error:
        raise _not_csv(name, table.line_num, error) from error


def _not_csv(name: str, line: int, error: csv.Error) -> DataError:
    remedy = (
        "write texts this long as JSON Lines" if "limit" in str(error) else "correct the line breaks and quotes there"
    )
    return data_error(f"{name}, line {line}", f"is not CSV: {error}", remedy)


def _cells(cells: list[str], header: list[str], where: str) -> Values:
    if len(cells) != len(header):
        raise data_error(
            where, f"has {len(cells)} cells, the header has {len(header)}", "put quotes around text with commas in it"
        )
    return dict(zip(header, cells, strict=True))


def _header(cells: list[str], name: str) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise data_error(f"{name}, line 1", f"names the column {twice[0]!r} twice", "give each column its own name")
    return cells


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


# Parquet


def _parquet(path: Path, name: str) -> Any:
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise data_error(name, "needs pyarrow to be read", "`pip install tunekit-formats[parquet]`") from error
    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise data_error(name, f"is not Parquet: {error}", "check that the file is complete") from error


def _parquet_rows(path: Path, name: str) -> Iterator[Values]:
    with _parquet(path, name) as file:
        batches = file.iter_batches(batch_size=1024)
        while (batch := _next_batch(batches, name)) is not None:
            yield from batch.to_pylist()


def _next_batch(batches: Iterator[Any], name: str) -> Any:
    try:
        return next(batches, None)
    except (OSError, ValueError) as error:
        raise data_error(name, f"is not whole: {error}", "check that the file is complete") from error


def _columns(path: Path, name: str) -> tuple[str, ...]:
    """The columns that the head of a CSV or Parquet file names."""
    if KINDS[path.suffix.lower()] is _parquet_rows:
        with _parquet(path, name) as file:
            return tuple(file.schema_arrow.names)
    try:
        return tuple(next(csv.reader(_lines(path, name), delimiter=_delimiter(path)), ()))
    except csv.Error as error:
        raise _not_csv(name, 1, error) from error


KINDS: dict[str, Callable[[Path, str], Iterator[Values]]] = {
    ".json": _json_rows,
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
"""The reader of each kind of file."""

FIXED = (_csv_rows, _parquet_rows)
"""Readers whose rows all have the columns that the head of the file names."""
