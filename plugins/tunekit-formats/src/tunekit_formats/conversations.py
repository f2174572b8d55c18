"""Rows that hold a list of turns: ShareGPT's `from` and `value`, OpenAI's `role` and `content`.

The order of turns is left to the model's chat template, which knows what the model allows. Tool calls are refused,
since the tools they were made with would not be shown to the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.errors import nearest
from tunekit.values import BadRow, Example, Message, Role, Row, Rows

from .preferences import refuse_preferences
from .problems import Unusable, column, kind, listed, text


@dataclass(frozen=True)
class Style:
    """How a format writes a turn: the keys of role and content, the names of roles, and those that belong to tools."""

    role: str
    content: str
    roles: Mapping[str, Role]
    tools: frozenset[str]


SHAREGPT = Style(
    "from",
    "value",
    {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"},
    frozenset({"function_call", "observation", "tool", "function"}),
)
OPENAI = Style(
    "role",
    "content",
    {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"},
    frozenset({"tool", "function"}),
)


def convert(rows: Rows, turns: str, style: Style) -> Iterator[Example | BadRow]:
    """Make one conversation of the list in column `turns` of each row, or say why not."""
    for row in rows.read():
        try:
            yield Example(row.number, row.where, _messages(row, turns, style))
        except Unusable as unusable:
            yield unusable.at(row)


def _messages(row: Row, turns: str, style: Style) -> tuple[Message, ...]:
    refuse_preferences(row)
    if row.values.get("tools") not in (None, "", "[]", [], ()):
        raise _tools("the row has a column tools")
    messages = tuple(_turn(turn, number, style) for number, turn in enumerate(_turns(row, turns), 1))
    if not any(message.role == "assistant" for message in messages):
        raise Unusable(
            f"no assistant turn (roles found: {listed(message.role for message in messages)})",
            "add the answer, or leave the row out",
        )
    return (*_system(row, messages), *messages)


def _turns(row: Row, name: str) -> Any:
    if name not in row.values:
        column(row, name)
    turns = row.values[name]
    if not isinstance(turns, (list, tuple)):
        raise Unusable(
            f"column {name} is {kind(turns)}, expected a list of turns", "write a list, or leave the row out"
        )
    return turns


def _system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turn made of a `system` column; refused where the conversation brings a system turn of its own."""
    if row.values.get("system") is None:
        return ()
    system = column(row, "system", blank=True)
    if not system.strip():
        return ()
    if any(message.role == "system" for message in messages):
        raise Unusable("there is a system column and a system turn as well", "keep one of the two")
    return (Message("system", system),)


def _turn(turn: Any, number: int, style: Style) -> Message:
    if not isinstance(turn, Mapping):
        raise Unusable(
            f"turn {number} is {kind(turn)}, expected {style.role} and {style.content}", "write it as an object"
        )
    missing = [key for key in (style.role, style.content) if key not in turn]
    if turn.get("tool_calls") or turn.get("function_call"):
        raise _tools(f"turn {number} calls a tool")
    if missing:
        raise Unusable(
            f"turn {number} has no {' and no '.join(missing)} (found: {listed(map(str, turn))})",
            f"name them {style.role} and {style.content}, or name another format",
        )
    role = _role(turn[style.role], number, style)
    weight = _weight(turn.get("weight"), number) if style is OPENAI else None
    content = _content(turn[style.content], number, style)
    if role == "assistant" and weight != 0 and not content.strip():
        raise Unusable(f"the answer in turn {number} is empty", "fill it in, or leave the row out")
    return Message(role, content, weight)


def _role(name: Any, number: int, style: Style) -> Role:
    known = text(name, f"{style.role} of turn {number}")
    if known in style.tools:
        raise _tools(f"turn {number} is of role {known}")
    if known not in style.roles:
        close = nearest(known, style.roles)
        hint = f"did you mean {close}? " if close else ""
        raise Unusable(
            f"turn {number} has the unknown role {known!r}", f"{hint}known roles are {listed(sorted(style.roles))}"
        )
    return style.roles[known]


def _content(value: Any, number: int, style: Style) -> str:
    """The text of a turn. OpenAI also writes it as a list of parts, of which only text can be trained."""
    name = f"{style.content} of turn {number}"
    if style is not OPENAI or not isinstance(value, (list, tuple)):
        return text(value, name, blank=True)
    parts = []
    for part in value:
        if not isinstance(part, Mapping):
            raise Unusable(f"a part of the {name} is {kind(part)}, expected an object", 'write {"type": "text", ...}')
        if part.get("type") != "text":
            raise Unusable(f"{name} has a part of type {part.get('type')}, only text is read", "leave the row out")
        parts.append(text(part.get("text"), f"a part of the {name}", blank=True))
    return "".join(parts)


def _weight(value: Any, number: int) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise Unusable(f"weight of turn {number} is {value!r}, expected a number from 0 up", "write 0, 1, or nothing")
    return float(value)


def _tools(what: str) -> Unusable:
    return Unusable(
        f"{what}, and this format does not read tools: the model would not be shown which tools there are",
        "leave the row out, or use a format for tool calls",
    )
