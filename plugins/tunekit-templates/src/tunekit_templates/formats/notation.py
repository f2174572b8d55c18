"""JSON in tool formats: written on one line, read back strictly, and names that stand on a line of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tunekit.values import ToolCall

_PLAIN_NAME = re.compile(r"[\w.:/-]+")


def to_json(value: Any, *markers: str) -> str:
    """Write JSON on one line, letters of all scripts as they are. A marker inside a string begins with an escape.

    The first character of each marker is written as `\\u....` wherever the marker stands. Markers are such that they
    stand nowhere in JSON but inside strings.
    """
    text = json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False)
    for marker in markers:
        text = text.replace(marker, f"\\u{ord(marker[0]):04x}{marker[1:]}")
    return text


def from_json(text: str) -> Any:
    """Read JSON; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def to_call(value: Any, arguments: str = "arguments", optional: tuple[str, ...] = ()) -> ToolCall | None:
    """The call in `{"name": ..., "arguments": {...}}`, `id` allowed where it is `optional`; None for anything else."""
    if not isinstance(value, dict) or set(value) - set(optional) != {"name", arguments}:
        return None
    name, given, identity = value["name"], value[arguments], value.get("id")
    if not isinstance(name, str) or not isinstance(given, dict) or not isinstance(identity, str | None):
        return None
    return ToolCall(name, given, identity)


def to_line(name: str) -> str:
    """Write a name on a line: as it is, or in quotes where it has spaces, quotes or line breaks."""
    return name if _PLAIN_NAME.fullmatch(name) else to_json(name)


def from_line(line: str) -> str | None:
    """Read a name back from its line; None where the line is no name."""
    if _PLAIN_NAME.fullmatch(line):
        return line
    name = from_json(line) if line.startswith('"') else None
    return name if isinstance(name, str) else None
