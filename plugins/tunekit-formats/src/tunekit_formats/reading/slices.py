"""Part of a split, as `datasets` writes it: `train[:100]`, `train[10%:20%]`, `train[-50:]`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from tunekit.values import Source

from ..problems import data_error
from .tables import Pass, Table

_SLICED = re.compile(r"(?P<split>[\w.-]+)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]")


@dataclass(frozen=True)
class Slice:
    """The rows from `start` up to and without `stop`; None is the start or the end, `%` is a share of all rows."""

    start: str | None
    stop: str | None


def parse_split(source: Source) -> tuple[str, Slice | None]:
    """The name of the split, and which part of it. Raises DataError where the text means nothing."""
    if not any(mark in source.split for mark in "[]+:"):
        return source.split, None
    match = _SLICED.fullmatch(source.split)
    if match is None:
        raise data_error(f"{source.key}.split", f"{source.split!r} is no split", "write it as train or train[:100]")
    return match["split"], Slice(match["start"], match["stop"])


def cut(table: Table, part: Slice | None, source: Source) -> Table:
    """The same table, with the rows of one part; they keep their numbers. Raises DataError where none is left."""
    if part is None:
        return table
    counted: list[int] = []

    def total() -> int:
        if not counted:
            counted.append(sum(1 for _ in table.read()))
        return counted[0]

    start = 0 if part.start is None else _place(part.start, total)
    stop = None if part.stop is None else _place(part.stop, total)

    def read() -> Pass:
        return islice(table.read(), start, stop)

    if next(read(), None) is None:
        raise data_error(f"{source.key}.split", f"{source.split!r} of {source.name} holds no rows", "take more rows")
    return replace(table, read=read)


def _place(text: str, total: Callable[[], int]) -> int:
    """A bound as a number of rows from the start; shares are rounded to the nearest row."""
    value = round(int(text[:-1]) * total() / 100) if text.endswith("%") else int(text)
    return max(0, value + total()) if text.startswith("-") else value
