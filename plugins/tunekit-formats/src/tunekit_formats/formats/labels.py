"""Labelled rows, as KTO is trained on: a conversation, and whether its last answer is good."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.values import BadRow, Example, Message, Row, Rows

from . import alpaca, conversations
from .answers import read_answer, read_question
from .checks import Unusable, convert, shown
from .images import Pictures
from .marks import LABELS, as_label
from .setting import refuse_unread_media, tools_of, with_system
from .shapes import Shape
from .styles import Style


def read(rows: Rows, shape: Shape) -> Iterator[Example | BadRow]:
    """Make one labelled conversation of each row, or say why not."""
    folder, prompt, style = rows.source.folder, shape.column, shape.style
    assert prompt is not None, "this shape begins in a column"

    def make(row: Row) -> Example:
        refuse_unread_media(row)
        messages = _conversation(row, prompt, style, Pictures.of(row, folder))
        if messages[-1].role != "assistant":
            raise Unusable("the conversation does not end with an answer", "a label judges the last answer: add it")
        tools = tools_of(row, row.values.get(prompt))
        return Example(row.number, row.where, messages, label=_label(row), tools=tools)

    return convert(rows, make)


def _conversation(row: Row, prompt: str, style: Style, pictures: Pictures) -> tuple[Message, ...]:
    if prompt == "instruction":
        return alpaca.conversation(row, pictures)
    if prompt != "prompt":
        return conversations.conversation(row, prompt, style, pictures)
    asked = read_question(row, "prompt", style, pictures)
    answer = read_answer(row, "completion", style, pictures)
    pictures.finish()
    if not answer or answer[0].role != "assistant":
        raise Unusable("the completion does not begin with an answer", "write the answer alone, without its prompt")
    return with_system(row, (*asked, *answer))


def _label(row: Row) -> bool:
    name = next((name for name in LABELS if row.values.get(name) is not None), LABELS[-1])
    label = as_label(row.values.get(name))
    if label is None:
        raise Unusable(
            f"column {name} is neither true nor false",
            f"write true or false, or leave the row out (found: {shown(row.values.get(name))})",
        )
    return label
