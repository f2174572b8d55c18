"""JSON: one object per line, or a list of objects; the content decides, since both are called .json in the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunekit.values import BadRow, Row

from ..problems import kind
from .blobs import Blob
from .json_lists import read_list
from .lines import MARK, UTF8, raw_lines, wrong_byte
from .tables import Pass

HINTED = 1 << 23
"""Bytes of a file looked at to tell whether the whole of it is one object."""


def read_json(blob: Blob) -> Pass:
    """The rows of a list, or of lines."""
    return read_list(blob, loads_unique, row_of) if _is_list(blob) else _read_lines(blob)


def row_of(value: Any, number: int, name: str) -> Row | BadRow:
    """A value that was parsed as a row; only an object has columns."""
    where = f"{name}, row {number}"
    if type(value) is dict:
        return Row(number, where, value)
    return BadRow(number, where, f"is {kind(value)}, expected an object with columns", 'write {"column": value, ...}')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names {twice!r} twice in one object")
    return values


loads_unique = json.JSONDecoder(object_pairs_hook=_unique)
"""A decoder that refuses an object with one name twice, of which only the last would be kept."""


def _is_list(blob: Blob) -> bool:
    with blob.open() as stream:
        block = stream.read(4096).removeprefix(MARK)
        while block:
            if stripped := block.lstrip():
                return stripped.startswith(b"[")
            block = stream.read(4096)
    return False


def _read_lines(blob: Blob) -> Pass:
    name, decode, number = blob.name, loads_unique.decode, 0
    for line, raw in enumerate(raw_lines(blob), 1):
        if raw.isspace() or not raw:
            continue
        number += 1
        try:
            value = decode(raw.decode())
        except UnicodeDecodeError as error:
            yield BadRow(number, f"{name}, line {line}", wrong_byte(error), UTF8)
        except (ValueError, RecursionError) as error:
            yield BadRow(number, f"{name}, line {line}", why(error), _remedy(blob, line))
        else:
            row = row_of(value, number, name)
            yield row if type(row) is Row else BadRow(number, f"{name}, line {line}", row.reason, row.remedy)


def why(error: Exception, column: int | None = None) -> str:
    """What is wrong with text that is not JSON."""
    if isinstance(error, RecursionError):
        return "is not JSON: it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} (column {error.colno if column is None else column})"
    return str(error) if str(error).startswith("names ") else f"is not JSON: {error}"


def _remedy(blob: Blob, line: int) -> str:
    """What to do about a malformed line; a file that is one object over several lines is told apart."""
    if line <= 2 and _is_one_object(blob):
        return "the file is one object; write a list of rows ([...]), or one object on each line"
    return "write one complete object on each line, or a list of objects ([...])"


def _is_one_object(blob: Blob) -> bool:
    with blob.open() as stream:
        start = stream.read(HINTED).removeprefix(MARK)
    try:
        return isinstance(json.loads(start), Mapping)
    except (ValueError, RecursionError):
        return False
