"""What a row says around its turns, alike in every format: the system text, the tools, and media that are not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.values import Message, Row

from .checks import Unusable, text_column
from .tools import Tool, read_tools

_UNREAD = ("videos", "audios")
_EMPTY: tuple[Any, ...] = (None, "", [], ())


def with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put the turn made of a `system` column first; refused where the messages bring a system turn of their own."""
    if row.values.get("system") is None:
        return messages
    system = text_column(row, "system", blank=True)
    if not system.strip():
        return messages
    if any(message.role == "system" for message in messages):
        raise Unusable("there is a system column and a system turn as well", "keep one of the two")
    return (Message("system", system), *messages)


def tools_of(row: Row, *turns: Any) -> tuple[Tool, ...]:
    """The tools of a row: of its column `tools` or `functions`, or of the first turn of one of these lists."""
    openings = [each[0] for each in turns if isinstance(each, (list, tuple)) and each]
    found = [read_tools(row.values.get(name), f"column {name}") for name in ("tools", "functions")]
    found += [read_tools(first.get("tools"), "turn 1") for first in openings if isinstance(first, Mapping)]
    found = [tools for tools in found if tools]
    if any(tools != found[0] for tools in found):
        raise Unusable("tools are given twice, differently", "keep one of the two")
    return found[0] if found else ()


def refuse_unread_media(row: Row) -> None:
    """Raise Unusable where a row brings videos or sounds: its text speaks of what the model would not be shown."""
    for name in _UNREAD:
        if row.values.get(name) not in _EMPTY:
            raise Unusable(f"column {name} is filled, and only images are read", "leave the row out")
