"""A table: rows from one place, and a fingerprint of its bytes; several tables can be read as one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tunekit.errors import DataError
from tunekit.values import BadRow, Row

from ..problems import data_error

Pass = Iterator[Row | BadRow]
"""One pass over rows; a row that cannot be read, where the next one can, is a BadRow."""


@dataclass(frozen=True)
class Table:
    """An opened source before its split is cut, its columns are renamed and its rows are limited.

    `columns` are those of the first row that can be read. `fixed` tells that every row has them all, as in CSV and
    Parquet; rows of JSON may leave some out.
    """

    columns: tuple[str, ...]
    read: Callable[[], Pass]
    fingerprint: str
    fixed: bool


def first_row(read: Callable[[], Pass], name: str, strict: bool) -> Row:
    """The first row that can be read. Raises DataError: there is none, or `strict` and one before it is malformed."""
    bad: BadRow | None = None
    for row in read():
        if isinstance(row, Row):
            return row
        if strict:
            raise as_error(row)
        bad = bad or row
    if bad is None:
        raise data_error(name, "holds no rows", "give at least one row")
    raise data_error(name, f"holds no row that can be read ({bad.where}: {bad.reason})", bad.remedy)


def as_error(bad: BadRow) -> DataError:
    """The error that a malformed row is where the source says `bad_rows: error`."""
    return data_error(bad.where, bad.reason, bad.remedy)


def join_tables(names: Sequence[str], tables: Sequence[Table]) -> Table:
    """Read tables one after the other; rows are numbered on, and say themselves where they stand."""

    def read() -> Pass:
        before = 0
        for table in tables:
            number = 0
            for number, row in enumerate(table.read(), 1):
                yield _renumbered(row, before + number) if before else row
            before += number

    digest = hashlib.sha256()
    for name, table in zip(names, tables, strict=True):
        digest.update(f"{name}\n{table.fingerprint}\n".encode("utf-8", "surrogateescape"))
    columns = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    return Table(columns, read, digest.hexdigest(), fixed=tables[0].fixed)


def _renumbered(row: Row | BadRow, number: int) -> Row | BadRow:
    if isinstance(row, Row):
        return Row(number, row.where, row.values)
    return BadRow(number, row.where, row.reason, row.remedy)
