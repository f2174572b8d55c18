"""One value of JSON: parsed, made a row, and what is said where it is malformed."""

from __future__ import annotations

import json
from typing import Any

from tunekit.values import BadRow, Row

from ..problems import kind


class _Twice(ValueError):
    """One object names a column twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"names {twice!r} twice in one object")
    return values


DECODER = json.JSONDecoder(object_pairs_hook=_unique)
"""Refuses an object that gives one name twice, of which plain `json` would keep the last alone."""


def row_of(value: Any, number: int, name: str, where: str) -> Row | BadRow:
    """Make a row of a value; `where` is told if it is no object, since only an object has columns."""
    if type(value) is dict:
        return Row(number, f"{name}, row {number}", value)
    return BadRow(number, where, f"is {kind(value)}, expected an object with columns", 'write {"column": value, ...}')


def why(error: Exception, column: int = 0) -> str:
    """What is wrong with text that is not JSON; `column` is where, if the error does not know itself."""
    if isinstance(error, RecursionError):
        return "is not JSON: it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} (column {column or error.colno})"
    return str(error) if isinstance(error, _Twice) else f"is not JSON: {error}"
