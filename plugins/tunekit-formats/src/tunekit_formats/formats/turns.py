"""Lists of turns, and single ones, become messages; the same for every format that has them.

The order of turns is left to the model's chat template, which knows what the model allows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tunekit.errors import nearest
from tunekit.values import Image, Message, Role

from ..problems import kind, listed
from . import thinking
from .checks import Unusable, shown, text
from .contents import Content, read_content
from .images import Pictures
from .styles import Part, Style
from .tools import read_calls

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_WEIGHTS = ("weight", "loss_weight")


def read_turns(value: Any, name: str, style: Style, pictures: Pictures) -> tuple[Message, ...]:
    """Read a list of turns, or one turn alone. Raises Unusable."""
    if isinstance(value, Mapping):
        return (_turn(value, style, pictures, name),)
    if not isinstance(value, (list, tuple)):
        raise Unusable(f"{name} is {kind(value)}, expected a list of turns", "write a list, or leave the row out")
    return tuple(_turn(turn, style, pictures, f"turn {number} of {name}") for number, turn in enumerate(value, 1))


def say(role: Role, written: str, pictures: Pictures, place: str) -> Message:
    """A message of text alone; an answer may begin with what is thought. Raises Unusable where an answer is empty."""
    return _message(role, Content(*pictures.cut(written)), {}, place)


def part_of(turn: Any, style: Style) -> Part | None:
    """What a turn is; None where that cannot be told."""
    role = turn.get(style.role) if isinstance(turn, Mapping) else None
    return style.roles.get(role) if isinstance(role, str) else None


def _turn(turn: Any, style: Style, pictures: Pictures, place: str) -> Message:
    if not isinstance(turn, Mapping):
        expected = f"an object of {style.role} and {style.content}"
        raise Unusable(f"a turn is {kind(turn)}, expected {expected}", "write it as an object", place)
    calls_something = bool(turn.get("tool_calls") or turn.get("function_call"))
    _require_keys(turn, (style.role,) if calls_something else (style.role, style.content), style, place)
    part = _part(turn[style.role], style, place)
    if part == "call":
        return _call(turn, style, place)
    written = turn.get(style.content)
    content = Content() if written is None and calls_something else read_content(written, pictures, place)
    if part != "assistant" and (calls_something or content.calls or content.thinking):
        raise Unusable("a turn that is not the assistant's thinks or calls a tool", "give it to the assistant", place)
    return _message(part, content, turn, place)


def _message(role: Role, content: Content, turn: Mapping[str, Any], place: str) -> Message:
    """Put a message together from its content and the other keys of its turn."""
    weight = _weight(turn, place)
    name = _optional(turn, "name", place)
    if role != "assistant":
        call = _optional(turn, "tool_call_id", place) if role == "tool" else None
        return Message(role, content.text, weight, images=content.images, name=name, call=call)
    thought, said, images = _thought(content, turn, place)
    calls = content.calls or read_calls(turn.get("tool_calls") or turn.get("function_call"), place)
    if weight != 0 and not said.strip() and not calls:
        raise Unusable("an answer is empty", "fill it in, or leave the row out", place)
    return Message(role, said, weight, thought, calls, images, name)


def _call(turn: Mapping[str, Any], style: Style, place: str) -> Message:
    """A turn whose content is a call of tools as JSON, perhaps after what the assistant thinks."""
    written, thought = turn[style.content], None
    if isinstance(written, str):
        thought, written = thinking.split(text(written, "a tool call", place=place))
    calls = read_calls(written, place)
    if not calls:
        raise Unusable("a turn that calls tools names none", "write the call, or leave the row out", place)
    return Message("assistant", "", _weight(turn, place), thought, calls)


def _require_keys(turn: Mapping[str, Any], keys: tuple[str, ...], style: Style, place: str) -> None:
    missing = [key for key in keys if key not in turn]
    if missing:
        raise Unusable(
            f"a turn has no {' and no '.join(missing)}",
            f"name them {style.role} and {style.content}, say in `tags` what they are called, or name another format "
            f"(found: {listed(map(str, turn))})",
            place,
        )


def _part(name: Any, style: Style, place: str) -> Part:
    known = text(name, f"the {style.role} of a turn", place=place)
    if known not in style.roles:
        close = nearest(known, style.roles)
        hint = f"did you mean {close}? " if close else ""
        remedy = f"{hint}{shown(known)} is none of {listed(sorted(style.roles))}; say in `tags` what roles are called"
        raise Unusable("a turn has an unknown role", remedy, place)
    return style.roles[known]


def _thought(content: Content, turn: Mapping[str, Any], place: str) -> tuple[str | None, str, tuple[Image, ...]]:
    """What the assistant thinks, told apart or at the start of the text; the rest of the text; the images in it."""
    written, said = thinking.split(content.text)
    told = [value for key in _THOUGHTS if (value := _optional(turn, key, place))]
    thoughts = [*told, *(thought for thought in (content.thinking, written) if thought is not None)]
    if any(thought != thoughts[0] for thought in thoughts):
        raise Unusable("an answer is thought over twice, differently", "keep one of the two", place)
    start = len(content.text) - len(said)
    if any(image.at < start for image in content.images):
        raise Unusable("an image stands in what the assistant thinks", "put it into the text", place)
    images = tuple(Image(image.source, image.at - start) for image in content.images) if start else content.images
    return next(iter(thoughts), None), said, images


def _weight(turn: Mapping[str, Any], place: str) -> float | None:
    value = next((turn[key] for key in _WEIGHTS if turn.get(key) is not None), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        remedy = f"write 0, 1, or nothing (found: {shown(value)})"
        raise Unusable("the weight of a turn is no number from 0 up", remedy, place)
    return float(value)


def _optional(turn: Mapping[str, Any], key: str, place: str) -> str | None:
    value = turn.get(key)
    return None if value is None else text(value, f"{key} of a turn", blank=True, place=place) or None
