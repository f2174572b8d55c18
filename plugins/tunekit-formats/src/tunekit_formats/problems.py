"""Saying what is wrong with a source or a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunekit.errors import DataError, Problem
from tunekit.values import BadRow, Row, Source

_KINDS: tuple[tuple[type, str], ...] = (
    (str, "text"),
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number"),
    (Mapping, "an object"),
    (list, "a list"),
    (tuple, "a list"),
    (bytes, "bytes"),
)


def data_error(where: str, message: str, remedy: str = "") -> DataError:
    """An error of one problem."""
    return DataError([Problem(where, message, remedy)])


def place(source: Source) -> str:
    """Where the recipe names a source, and which one it is."""
    return source.name if source.path is None else f"{source.key} ({source.path})"


def kind(value: object) -> str:
    """What a value is, in words of the data: `text`, `a list`, `null`."""
    if value is None:
        return "null"
    return next((name for base, name in _KINDS if isinstance(value, base)), type(value).__name__)


def listed(names: Iterable[str]) -> str:
    """Names in a sentence, or `none`."""
    return ", ".join(names) or "none"


class Unusable(Exception):
    """Why a row is not an example, and what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy

    def at(self, row: Row) -> BadRow:
        """The same for one row."""
        return BadRow(row.number, row.where, self.reason, self.remedy)


def text(value: Any, name: str, blank: bool = False) -> str:
    """Check that a value is text that can be encoded, and not blank unless `blank`. Raises Unusable."""
    if not isinstance(value, str):
        raise Unusable(f"{name} is {kind(value)}, expected text", "write it as text, or leave the row out")
    if not blank and not value.strip():
        raise Unusable(f"{name} is empty", "fill it in, or leave the row out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        bad = f"U+{ord(value[error.start]):04X}"
        raise Unusable(f"{name} holds half a character ({bad})", "repair the encoding of the data") from error
    return value


def column(row: Row, name: str, blank: bool = False) -> str:
    """Check one text column of a row. Raises Unusable where it is missing or not text."""
    if name not in row.values:
        found = listed(map(str, row.values))
        raise Unusable(f"column {name} is missing (found: {found})", "add it, or leave the row out")
    return text(row.values[name], f"column {name}", blank)
