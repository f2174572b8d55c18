"""Rows that hold a list of turns: ShareGPT's `from` and `value`, OpenAI's `role` and `content`."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.values import BadRow, Example, Message, Row, Rows

from ..problems import listed
from .checks import Unusable, column, convert
from .images import Pictures
from .marks import refuse_marked
from .setting import refuse_unread_media, tools_of, with_system
from .shapes import Shape
from .styles import Style
from .turns import read_turns


def read(rows: Rows, shape: Shape) -> Iterator[Example | BadRow]:
    """Make one conversation of the list of turns in each row, or say why not."""
    folder, turns, style = rows.source.folder, shape.column, shape.style
    assert turns is not None, "these shapes begin in a column"

    def make(row: Row) -> Example:
        refuse_marked(row)
        refuse_unread_media(row)
        messages = conversation(row, turns, style, Pictures.of(row, folder))
        return Example(row.number, row.where, messages, tools=tools_of(row, row.values[turns]))

    return convert(rows, make)


def conversation(row: Row, turns: str, style: Style, pictures: Pictures) -> tuple[Message, ...]:
    """The turns of a column, with an answer among them; all images of the row are in it. Raises Unusable."""
    messages = read_turns(column(row, turns), f"column {turns}", style, pictures)
    if not any(message.role == "assistant" for message in messages):
        found = listed(dict.fromkeys(message.role for message in messages))
        raise Unusable("no assistant turn", f"add the answer, or leave the row out (roles found: {found})")
    pictures.finish()
    return with_system(row, messages)
