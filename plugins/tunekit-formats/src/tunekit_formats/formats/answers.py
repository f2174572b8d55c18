"""The prompt of a row and the answers to it, for the formats that keep the two apart."""

from __future__ import annotations

from typing import Any

from tunekit.values import Message, Row

from . import alpaca
from .checks import Unusable, column, text
from .images import Pictures
from .styles import Style
from .turns import part_of, read_turns, say


def read_prompt(row: Row, name: str, style: Style, pictures: Pictures) -> tuple[Message, ...]:
    """The prompt in column `name`: of alpaca's columns for `instruction`, else a text, a turn or a list of turns."""
    if name == "instruction":
        return alpaca.question(row, pictures)
    value = column(row, name)
    if isinstance(value, str) and name == "prompt":
        return (say("user", text(value, "column prompt"), pictures, "column prompt"),)
    return read_turns(value, f"column {name}", style, pictures)


def read_question(row: Row, name: str, style: Style, pictures: Pictures) -> tuple[Message, ...]:
    """The prompt in column `name`. Raises Unusable where that is a list without a turn."""
    asked = read_prompt(row, name, style, pictures)
    if not asked:
        raise Unusable("the prompt has no turn", "write what is asked, or leave the row out", f"column {name}")
    return asked


def read_answer(row: Row, name: str, style: Style, pictures: Pictures) -> tuple[Message, ...]:
    """The answer in column `name`: a text, a turn, or a list of turns."""
    value = column(row, name)
    if isinstance(value, str):
        return (say("assistant", text(value, f"column {name}"), pictures, f"column {name}"),)
    return read_turns(value, f"column {name}", style, pictures)


def is_conversation(value: Any, style: Style, prompted: bool) -> bool:
    """Whether a value under the name of an answer is a whole conversation.

    A list of turns is one where there is no prompt beside it, or where it does not begin with an answer.
    """
    if not isinstance(value, (list, tuple)):
        return False
    first = value[0] if value else None
    return not prompted or part_of(first, style) in ("system", "user")
