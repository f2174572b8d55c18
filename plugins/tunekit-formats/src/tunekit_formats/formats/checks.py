"""Checking values of a row, and saying what is wrong with them.

A reason says only what kind of fault it is, so that rows with the same fault are counted together; where in the row it
is, and what was found there, stands in the remedy.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from typing import Any

from tunekit.values import BadRow, Example, Row, Rows

from ..problems import kind, listed


class Unusable(Exception):
    """Why a row is not an example, and what to do. `place` says where in the row."""

    def __init__(self, reason: str, remedy: str, place: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = f"{place}: {remedy}" if place else remedy


def convert(rows: Rows, make: Callable[[Row], Example]) -> Iterator[Example | BadRow]:
    """Give one result for each row: what `make` makes of it, or why it cannot be used."""
    for row in readable(rows):
        try:
            yield make(row)
        except Unusable as unusable:
            yield BadRow(row.number, row.where, unusable.reason, unusable.remedy)


def readable(rows: Rows) -> Iterator[Row]:
    """One pass over rows; those that could not be read are taken out before a format meets them."""
    for row in rows.read():
        assert isinstance(row, Row)
        yield row


def shown(value: Any) -> str:
    """A value for a message: short, however large or deep it is."""
    return reprlib.repr(value)


def text(value: Any, name: str, blank: bool = False, place: str = "") -> str:
    """Check that a value is text that can be encoded, and not blank unless `blank`. Raises Unusable."""
    if not isinstance(value, str):
        raise Unusable(f"{name} is {kind(value)}, expected text", "write it as text, or leave the row out", place)
    if not blank and not value.strip():
        raise Unusable(f"{name} is empty", "fill it in, or leave the row out", place)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        bad = f"U+{ord(value[error.start]):04X}"
        remedy = f"repair the encoding of the data ({bad} stands alone)"
        raise Unusable(f"{name} holds half a character", remedy, place) from error
    return value


def column(row: Row, name: str) -> Any:
    """The value of a column. Raises Unusable where it is missing."""
    if name not in row.values:
        found = listed(map(str, row.values))
        raise Unusable(f"column {name} is missing", f"add it, or leave the row out (columns found: {found})")
    return row.values[name]


def text_column(row: Row, name: str, blank: bool = False) -> str:
    """A column of text. Raises Unusable where it is missing or not text."""
    return text(column(row, name), f"column {name}", blank)
