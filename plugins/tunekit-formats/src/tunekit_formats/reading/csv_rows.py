"""CSV and TSV: the first line names the columns."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tunekit.errors import DataError
from tunekit.values import BadRow, Row

from ..problems import data_error
from .blobs import Blob
from .lines import UTF8, not_utf8, raw_lines, wrong_byte
from .tables import Pass

LONGEST = 2**31 - 1
"""Characters in a cell; the standard library's own limit is for the whole process and shorter than many texts."""

SEPARATORS = (";", "\t", "|", ",")
"""What cells are separated by in the field; a column's name holds none of them."""

TOGETHER = 64
"""Rows parsed while that limit is raised."""


def read_csv(blob: Blob) -> Pass:
    """Rows of cells separated by commas."""
    return _read(blob, ",")


def read_tsv(blob: Blob) -> Pass:
    """Rows of cells separated by tabs."""
    return _read(blob, "\t")


def _read(blob: Blob, delimiter: str) -> Pass:
    """Rows by column. Raises DataError where the header is malformed, and where a quote is never closed."""
    cells = _Cells(blob, delimiter)
    header: list[str] | None = None
    number = 0
    while batch := cells.next_rows():
        for line, row, problem in batch:
            if header is None:
                header = _header(row, problem, f"{blob.name}, line {line}", delimiter)
                continue
            number += 1
            problem = problem or _wrong_length(row, header)
            if problem:
                yield BadRow(number, f"{blob.name}, line {line}", *problem)
            else:
                yield Row(number, f"{blob.name}, row {number}", dict(zip(header, row, strict=True)))


def _wrong_length(row: list[str], header: list[str]) -> tuple[str, str] | None:
    if len(row) == len(header):
        return None
    return f"has {len(row)} cells, the header has {len(header)}", "put quotes around text with commas in it"


def _header(row: list[str], problem: tuple[str, str] | None, where: str, delimiter: str) -> list[str]:
    if problem:
        raise data_error(where, *problem)
    twice = sorted({cell for cell in row if row.count(cell) > 1})
    if twice:
        raise data_error(where, f"names the column {twice[0]!r} twice", "give each column its own name")
    other = next((mark for mark in SEPARATORS if mark != delimiter and len(row) == 1 and mark in row[0]), None)
    if other is not None:
        message = f"names one column, {row[0]!r}, as if cells were separated by {other!r}"
        raise data_error(where, message, "separate them by commas in .csv, by tabs in .tsv")
    return row


Parsed = tuple[int, list[str], tuple[str, str] | None]
"""The line where a row starts, its cells, and what is wrong with it: reason and remedy."""


class _Cells:
    """The rows of a file as cells; goes on after a malformed one."""

    def __init__(self, blob: Blob, delimiter: str) -> None:
        self._name = blob.name
        self._lines = _Lines(blob)
        self._table = csv.reader(self._lines, delimiter=delimiter, strict=True)

    def next_rows(self) -> list[Parsed]:
        """The next rows that are not blank; none at the end of the file."""
        rows: list[Parsed] = []
        with _long_cells():
            while len(rows) < TOGETHER:
                row = self._next()
                if row is None:
                    break
                if row[1] or row[2]:
                    rows.append(row)
        return rows

    def _next(self) -> Parsed | None:
        line, self._lines.wrong = self._lines.number + 1, None
        problem: tuple[str, str] | None = None
        try:
            cells = next(self._table, None)
        except csv.Error as error:
            if self._lines.ended:
                raise self._unclosed(line, error) from error
            cells, problem = [], (f"is not CSV: {error}{self._span(line)}", "correct the line breaks and quotes there")
        if self._lines.wrong is not None:
            return self._lines.wrong[0], [], (wrong_byte(self._lines.wrong[1]), UTF8)
        return None if cells is None else (line, cells, problem)

    def _span(self, line: int) -> str:
        return f" (the row runs on to line {self._lines.number})" if self._lines.number > line else ""

    def _unclosed(self, line: int, error: csv.Error) -> DataError:
        if self._lines.wrong is not None:
            return not_utf8(self._name, *self._lines.wrong)
        reason = f"is not CSV: {error}: a quote that opens in this row is never closed"
        return data_error(f"{self._name}, line {line}", reason, "close it; a quote inside quotes is written twice")


class _Lines:
    """Decoded lines for the parser; a wrong byte is noted, so that the row it stands in is read to its end."""

    def __init__(self, blob: Blob) -> None:
        self._raw = raw_lines(blob)
        self.number = 0
        self.ended = False
        self.wrong: tuple[int, UnicodeDecodeError] | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            raw = next(self._raw)
        except StopIteration:
            self.ended = True
            raise
        self.number += 1
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.wrong = self.wrong or (self.number, error)
            return raw.decode(errors="replace")


_lock = threading.Lock()
_raised: list[int] = []


@contextmanager
def _long_cells() -> Iterator[None]:
    """Allow cells of any length, and give the process back its own limit when the last reader is done."""
    with _lock:
        _raised.append(csv.field_size_limit(LONGEST))
    try:
        yield
    finally:
        with _lock:
            limit = _raised.pop()
            if not _raised:
                csv.field_size_limit(limit)
