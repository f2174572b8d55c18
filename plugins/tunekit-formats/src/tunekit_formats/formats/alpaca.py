"""Alpaca rows: an instruction, perhaps an input, and an output.

The user's turn is the instruction, and the input under it on a new line where there is one. `history`, a list of
earlier pairs of question and answer, becomes the turns before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.values import BadRow, Example, Message, Row, Rows

from ..problems import kind
from .checks import Unusable, convert, text, text_column
from .images import Pictures
from .marks import refuse_marked
from .setting import refuse_unread_media, tools_of, with_system
from .turns import say


def read(rows: Rows) -> Iterator[Example | BadRow]:
    """Make one conversation of each row, or say why not."""
    folder = rows.source.folder

    def make(row: Row) -> Example:
        refuse_marked(row)
        refuse_unread_media(row)
        return Example(row.number, row.where, conversation(row, Pictures.of(row, folder)), tools=tools_of(row))

    return convert(rows, make)


def conversation(row: Row, pictures: Pictures) -> tuple[Message, ...]:
    """Question, answer, and what goes before; all images of the row are in it. Raises Unusable."""
    asked = question(row, pictures)
    answer = say("assistant", text_column(row, "output", blank=True), pictures, "column output")
    pictures.finish()
    return with_system(row, (*asked, answer))


def question(row: Row, pictures: Pictures) -> tuple[Message, ...]:
    """The turns of `history`, and the question. Raises Unusable."""
    parts = [text_column(row, "instruction", blank=True)]
    if row.values.get("input") is not None:
        parts.append(text_column(row, "input", blank=True))
    asked = "\n".join(filter(None, parts))
    if not asked.strip():
        raise Unusable("instruction and input are both empty", "fill one in, or leave the row out")
    return (*_history(row.values.get("history"), pictures), say("user", asked, pictures, "column instruction"))


def _history(history: Any, pictures: Pictures) -> Iterator[Message]:
    if history is None or history == "":
        return
    remedy = "write [[question, answer], ...]"
    if not isinstance(history, (list, tuple)):
        raise Unusable(f"column history is {kind(history)}, expected a list of pairs", remedy)
    for number, pair in enumerate(history, 1):
        place = f"item {number} of history"
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Unusable("an item of history is not a pair", remedy, place)
        yield say("user", text(pair[0], "a question of history", place=place), pictures, place)
        yield say("assistant", text(pair[1], "an answer of history", place=place), pictures, place)
