"""Rows given in Python: a list, a data set, anything that can be iterated again, or a function that starts afresh."""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

from tunekit.errors import DataError
from tunekit.values import BadRow, Row, Source

from ..problems import data_error, kind
from .hub import dataset_fingerprint, dataset_rows
from .tables import Pass, Table, first_row

HASHED = 10_000
"""Rows of a function or an iterable that go into its fingerprint, since it may never end."""

_DICT = "give objects that map columns to values, such as dicts (of a data frame: `frame.to_dict('records')`)"

_endless: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def open_given(source: Source) -> Table:
    """Open rows given in Python. Raises DataError: they can be read only once, are not rows, or there are none."""
    rows = source.rows
    start = _starter(source, rows)
    data = rows if _is_dataset(rows) else None

    def read() -> Pass:
        values = start() if data is None else dataset_rows(data)
        for number, row in enumerate(values, 1):
            yield _row(row, number, f"{source.name}, row {number}")

    first = first_row(read, source.name, source.bad_rows == "error")
    fingerprint = _fingerprint(rows, start, source.limit) if data is None else dataset_fingerprint(data)
    return Table(tuple(first.values), read, fingerprint, fixed=data is not None)


def _row(values: Any, number: int, where: str) -> Row | BadRow:
    if not isinstance(values, Mapping):
        return BadRow(number, where, f"is {kind(values)}, expected values by column", _DICT)
    for name in values:
        if not isinstance(name, str):
            return BadRow(number, where, f"has {kind(name)} ({name!r}) as the name of a column", "name columns by text")
    return Row(number, where, values)


def _starter(source: Source, rows: Any) -> Callable[[], Iterator[Any]]:
    """What starts a fresh pass."""
    if isinstance(rows, Mapping):
        message = f"is one {type(rows).__name__}, expected rows"
        raise data_error(source.name, message, "give a list of rows; of several splits, give one")
    if isinstance(rows, Iterable):
        if isinstance(rows, Iterator):
            raise _once(source, rows)
        return lambda: iter(rows)
    if not callable(rows):
        raise data_error(source.name, f"is {kind(rows)}, expected rows", "give a list of dicts, or a function")
    return _calling(source, rows)


def _calling(source: Source, function: Callable[[], Any]) -> Callable[[], Iterator[Any]]:
    last: list[Any] = []

    def start() -> Iterator[Any]:
        result = function()
        if not isinstance(result, Iterable):
            message = f"the function gives {kind(result)}, expected rows"
            raise data_error(source.name, message, "let it return a list of dicts, or yield them")
        if isinstance(result, Iterator) and last and last[0] is result:
            raise _once(source, result)
        last[:] = [result]
        return iter(result)

    return start


def _once(source: Source, rows: object) -> DataError:
    return data_error(
        source.name,
        f"is a {type(rows).__name__}, which can be read only once",
        "data is read several times: give the function that makes it, as in `rows=make_rows`, not `rows=make_rows()`",
    )


def _is_dataset(rows: Any) -> bool:
    """Whether it is a data set whose values are as they are stored; a transform of its own is left to it."""
    datasets: Any = sys.modules.get("datasets")
    return datasets is not None and isinstance(rows, datasets.Dataset) and rows.format["type"] is None


def _fingerprint(rows: Any, start: Callable[[], Iterator[Any]], limit: int | None) -> str:
    """SHA-256 of the rows. Of those that may never end it covers the first; then no other process has the same."""
    most = None if isinstance(rows, Sequence) else min(HASHED, limit or HASHED)
    digest = hashlib.sha256()
    values = start()
    for row in islice(values, most):
        digest.update(_encode(row) + b"\n")
    if most == HASHED and next(values, None) is not None:
        digest.update(_mark(rows).encode())
    return digest.hexdigest()


def _encode(row: Any) -> bytes:
    try:
        return json.dumps(row, default=_described).encode()
    except (TypeError, ValueError, RecursionError):  # keys that are no text, or a row that holds itself
        return repr(row).encode("utf-8", "surrogatepass")


def _described(value: Any) -> str:
    """What JSON cannot say; of an opened image its pixels, since its name is another in each process."""
    if callable(getattr(value, "tobytes", None)) and hasattr(value, "mode"):
        return f"{value.mode} {value.size} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return repr(value)


def _mark(rows: Any) -> str:
    """A mark of this object in this process."""
    try:
        return _endless.setdefault(rows, uuid.uuid4().hex)
    except TypeError:
        return uuid.uuid4().hex
