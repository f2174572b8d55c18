"""How a list of turns is written: the keys of a turn, and the names of the roles in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tunekit.errors import nearest
from tunekit.values import Role, Source

from ..problems import data_error, listed

Part = Role | Literal["call"]
"""What a turn is: of one of the roles, or a call of tools that the assistant makes."""


@dataclass(frozen=True)
class Style:
    """The keys of role and content, and what each name of a role means."""

    role: str
    content: str
    roles: Mapping[str, Part]


_ROLES: Mapping[str, Part] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "call",
}
SHAREGPT = Style("from", "value", _ROLES)
OPENAI = Style("role", "content", {**_ROLES, "function": "tool"})

_TAGS: Mapping[str, Part] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "function": "call",
}


def tagged(style: Style, source: Source) -> Style:
    """The style with the names that the source gives to keys and roles. Raises DataError for an unknown tag."""
    tags = source.tags
    for tag, name in tags.items():
        if tag not in ("role", "content", *_TAGS):
            close = nearest(tag, ("role", "content", *_TAGS))
            hint = f"did you mean {close}? " if close else ""
            raise data_error(
                f"{source.key}.tags.{tag}", "means nothing", f"{hint}tags are role, content, {listed(_TAGS)}"
            )
        if not name:
            raise data_error(f"{source.key}.tags.{tag}", "is empty", "write the name that the data uses")
    for pair in (("role", "content"), tuple(_TAGS)):
        _require_distinct(source, [tag for tag in pair if tag in tags])
    roles = {name: part for name, part in style.roles.items() if not any(_TAGS.get(tag) == part for tag in tags)}
    named = {tags[tag]: part for tag, part in _TAGS.items() if tag in tags}
    return Style(tags.get("role", style.role), tags.get("content", style.content), {**roles, **named})


def _require_distinct(source: Source, tags: list[str]) -> None:
    names = [source.tags[tag] for tag in tags]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        both = listed(tag for tag in tags if source.tags[tag] == twice)
        raise data_error(f"{source.key}.tags", f"gives the name {twice!r} to several ({both})", "name each differently")
