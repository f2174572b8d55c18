"""JSON: a list of objects, or one object per line; the content decides, since both are called .json in the field."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tunekit.values import BadRow

from .blobs import Blob
from .json_lists import read_list
from .json_values import DECODER, row_of, why
from .lines import MARK, UTF8, raw_lines, wrong_byte
from .tables import Pass

HINTED = 1 << 23
"""Bytes of a file looked at to tell whether the whole of it is one object."""


def read_json(blob: Blob) -> Pass:
    """The rows of a list, or of lines."""
    return read_list(blob) if _is_list(blob) else _read_lines(blob)


def _is_list(blob: Blob) -> bool:
    with blob.open() as stream:
        block = stream.read(4096).removeprefix(MARK)
        while block:
            if stripped := block.lstrip():
                return stripped.startswith(b"[")
            block = stream.read(4096)
    return False


def _read_lines(blob: Blob) -> Pass:
    name, decode, number = blob.name, DECODER.decode, 0
    for line, raw in enumerate(raw_lines(blob), 1):
        if raw.isspace() or not raw:
            continue
        number += 1
        try:
            value = decode(raw.decode().rstrip())
        except UnicodeDecodeError as error:
            yield BadRow(number, f"{name}, line {line}", wrong_byte(error), UTF8)
        except (ValueError, RecursionError) as error:
            yield BadRow(number, f"{name}, line {line}", why(error), _remedy(blob, line))
        else:
            yield row_of(value, number, name, f"{name}, line {line}")


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
