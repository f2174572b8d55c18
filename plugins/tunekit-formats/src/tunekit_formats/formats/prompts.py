"""Rows that ask and do not answer: a prompt, for stages that learn from their own answers."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.values import BadRow, Example, Row, Rows

from .answers import read_question
from .checks import Unusable, convert
from .images import Pictures
from .setting import refuse_unread_media, tools_of, with_system
from .shapes import Shape


def read(rows: Rows, shape: Shape) -> Iterator[Example | BadRow]:
    """Make a conversation that waits for its answer of each row, or say why not."""
    folder, name, style = rows.source.folder, shape.column, shape.style
    assert name is not None, "the prompt has a column"

    def make(row: Row) -> Example:
        refuse_unread_media(row)
        pictures = Pictures.of(row, folder)
        messages = read_question(row, name, style, pictures)
        pictures.finish()
        if messages[-1].role == "assistant":
            raise Unusable(
                "the prompt ends with an answer", "take it out, or call the column messages", "column prompt"
            )
        return Example(row.number, row.where, with_system(row, messages), tools=tools_of(row, row.values[name]))

    return convert(rows, make)
