"""A source of the recipe becomes rows: found, opened, its columns renamed, its rows numbered and limited."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunekit.errors import DataError, nearest
from tunekit.values import Row, Rows, Source

from .files import KINDS, open_file
from .problems import data_error, kind, listed, place
from .tables import Record, Table

PEEK = 100
"""Rows of JSON looked at to learn whether a column that is to be renamed exists."""

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def open_source(source: Source, subset: str | None = None, revision: str | None = None) -> Rows:
    """Open a source. Raises DataError: not found, unreadable, malformed, empty, or without a column to be renamed."""
    table = _table(source, subset, revision)
    head = list(islice(table.read(), PEEK if source.columns else 1))
    if not head:
        raise data_error(place(source), "holds no rows", "give at least one row")
    found = table.columns if table.fixed else tuple(dict.fromkeys(chain.from_iterable(row for _, row in head)))
    _require_columns(source, found)
    columns = table.columns if table.fixed else tuple(head[0][1])
    return Rows(
        source, tuple(rename(dict.fromkeys(columns), source.columns)), _reader(source, table), table.fingerprint
    )


def rename(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Give columns their new names; `columns` is {new name: name in the data}. A new name hides an old column."""
    taken = {*columns, *columns.values()}
    named = {new: values[old] for new, old in columns.items() if old in values}
    return {**named, **{name: value for name, value in values.items() if name not in taken}}


def _reader(source: Source, table: Table) -> Any:
    def read() -> Iterator[Row]:
        for number, (where, values) in enumerate(islice(table.read(), source.limit), 1):
            yield Row(number, where, rename(values, source.columns) if source.columns else values)

    return read


def _require_columns(source: Source, found: Sequence[str]) -> None:
    for new, old in source.columns.items():
        if old not in found:
            close = nearest(old, found)
            hint = f"did you mean {close!r}? " if close else ""
            raise data_error(
                f"{source.key}.columns.{new}",
                f"{source.name} has no column {old!r}",
                f"{hint}columns found: {listed(found)}",
            )


def _table(source: Source, subset: str | None, revision: str | None) -> Table:
    if source.rows is not None:
        _require_only_split(source, "rows given in Python")
        return _given(source, source.rows)
    if not source.path:
        raise data_error(source.key, "names neither a path nor rows", "give a file, a folder, or a hub data set")
    path = Path(source.path).expanduser()
    if path.is_dir():
        from .folders import open_folder

        return open_folder(path, source)
    if path.is_file():
        _require_only_split(source, "one file")
        return open_file(path, source.path, source.key)
    if not _may_be_on_hub(path, source.path):
        raise _not_found(source, path)
    from .hub import open_hub

    return open_hub(source, subset, revision)


def _require_only_split(source: Source, what: str) -> None:
    if source.split != "train":
        raise data_error(
            f"{source.key}.split",
            f"{source.name} is {what}, which has no split {source.split!r}",
            "leave `split` out, or name a folder or a hub data set that has splits",
        )


def _may_be_on_hub(path: Path, name: str) -> bool:
    """A name like `owner/name`, but not a file that is missing from a folder which is there."""
    return _HUB_NAME.fullmatch(name) is not None and path.suffix.lower() not in KINDS and not path.parent.is_dir()


def _not_found(source: Source, path: Path) -> DataError:
    if not path.parent.is_dir():
        return data_error(source.key, f"there is no folder {str(path.parent)!r}", "check the path")
    close = nearest(path.name, (entry.name for entry in path.parent.iterdir()))
    hint = f"did you mean {str(path.with_name(close))!r}?" if close else "check the path"
    return data_error(source.key, f"there is no file or folder {source.path!r}", hint)


def _given(source: Source, rows: Sequence[Mapping[str, Any]]) -> Table:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise data_error(
                f"{source.name}, row {number}", f"is {kind(row)}, expected values by column", "give a dict"
            )

    def read() -> Iterator[Record]:
        return ((f"{source.name}, row {number}", row) for number, row in enumerate(rows, 1))

    return Table(tuple(rows[0]) if rows else (), read, _fingerprint(rows), fixed=False)


def _fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, default=repr).encode() + b"\n")
    return digest.hexdigest()
