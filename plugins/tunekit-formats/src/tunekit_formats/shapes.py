"""Which of the four formats rows are in, told by their columns; at most one ever answers.

A list of turns is called `messages` or `conversations`; whether its turns are `role` and `content` (openai) or `from`
and `value` (sharegpt) is read from the first turn, and where that says nothing the name of the column decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, islice
from typing import Literal

from tunekit.values import Rows

from .problems import data_error, listed, place

Format = Literal["alpaca", "sharegpt", "openai", "text"]

NEEDS: dict[Format, tuple[str, ...]] = {
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "openai": ("messages",),
    "text": ("text",),
}
"""The columns each format cannot do without."""

PEEK = 100
"""Rows looked at to learn the columns."""

_TURNS: dict[Format, str] = {"sharegpt": "from", "openai": "role"}


def recognise(rows: Rows, name: Format) -> str | None:
    """Tell whether rows are of this format, and in which column: the list of turns, or the first column it needs.

    None where they are not and the source names no format. Raises DataError where the source names this format but
    lacks a column for it.
    """
    if rows.source.format is not None:
        return _named(rows, name)
    shape = _shape(rows, rows.columns) or _shape(rows, _all_columns(rows))
    return shape[1] if shape is not None and shape[0] == name else None


def _named(rows: Rows, name: Format) -> str:
    """The column of a format that the source names; its columns are taken on trust where they are there."""
    columns = _all_columns(rows)
    turns = next((column for column in _lists_of_turns(name) if column in columns), None)
    if turns is not None:
        return turns
    missing = [column for column in NEEDS[name] if column not in columns]
    if missing:
        raise data_error(
            place(rows.source),
            f"format {name} needs the columns {listed(NEEDS[name])}; not found: {listed(missing)}; "
            f"found: {listed(columns)}",
            f"say which column it is, as in `columns: {{{missing[0]}: {next(iter(columns), 'name')}}}`, or name "
            "another format",
        )
    return NEEDS[name][0]


def _all_columns(rows: Rows) -> tuple[str, ...]:
    """The columns of the first rows together, so that one bad row at the start does not hide the shape of the rest."""
    head = (row.values for row in islice(rows.read(), PEEK))
    return tuple(dict.fromkeys(chain(rows.columns, chain.from_iterable(head))))


def _shape(rows: Rows, names: Iterable[str]) -> tuple[Format, str] | None:
    """The one format that has these columns, and its column; None where there is none, or more than one."""
    columns = set(names)
    turns = [column for column in ("messages", "conversations") if column in columns]
    alpaca = columns.issuperset(NEEDS["alpaca"])
    if len(turns) + alpaca > 1:
        return None
    if turns:
        return _style(rows, turns[0]), turns[0]
    if alpaca:
        return "alpaca", "instruction"
    return ("text", "text") if "text" in columns else None


def _style(rows: Rows, column: str) -> Format:
    head = (row.values.get(column) for row in islice(rows.read(), PEEK))
    turn = next((turns[0] for turns in head if isinstance(turns, (list, tuple)) and turns), None)
    keys = set(turn) if isinstance(turn, Mapping) else set()
    styles: list[Format] = [name for name, key in _TURNS.items() if key in keys]
    return styles[0] if len(styles) == 1 else "openai" if column == "messages" else "sharegpt"


def _lists_of_turns(name: Format) -> tuple[str, ...]:
    return {"openai": ("messages", "conversations"), "sharegpt": ("conversations", "messages")}.get(name, ())
