"""Alpaca rows: an instruction, perhaps an input, and an output.

The user's turn is the instruction, and the input under it on a new line where there is one. A `system` text becomes
the system turn, and `history`, a list of earlier pairs of question and answer, the turns before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.values import BadRow, Example, Message, Row, Rows

from .preferences import refuse_preferences
from .problems import Unusable, column, kind, text


def convert(rows: Rows) -> Iterator[Example | BadRow]:
    """Make one conversation of each row, or say why not."""
    for row in rows.read():
        try:
            yield Example(row.number, row.where, _messages(row))
        except Unusable as unusable:
            yield unusable.at(row)


def _messages(row: Row) -> tuple[Message, ...]:
    refuse_preferences(row)
    system = _optional(row, "system")
    question = "\n".join(part for part in (column(row, "instruction", blank=True), _optional(row, "input")) if part)
    if not question.strip():
        raise Unusable("instruction and input are both empty", "fill one in, or leave the row out")
    answer = column(row, "output")
    return (
        *((Message("system", system),) if system.strip() else ()),
        *_history(row.values.get("history")),
        Message("user", question),
        Message("assistant", answer),
    )


def _optional(row: Row, name: str) -> str:
    return "" if row.values.get(name) is None else column(row, name, blank=True)


def _history(history: Any) -> Iterator[Message]:
    if history is None or history == "":
        return
    if not isinstance(history, (list, tuple)):
        raise Unusable(
            f"column history is {kind(history)}, expected a list of pairs", "write [[question, answer], ...]"
        )
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Unusable(f"item {number} of history is not a pair", "write [[question, answer], ...]")
        yield Message("user", text(pair[0], f"question {number} of history"))
        yield Message("assistant", text(pair[1], f"answer {number} of history"))
