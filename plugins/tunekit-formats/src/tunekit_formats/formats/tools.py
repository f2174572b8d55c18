"""Tools: the definitions a row brings, and the calls in its turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.values import ToolCall

from ..problems import kind, listed
from .checks import Unusable, shown, text
from .plain import parse, plain

Tool = Mapping[str, Any]


def read_tools(value: Any, place: str) -> tuple[Tool, ...]:
    """Read definitions of tools: a list of JSON schemas, one alone, or JSON text of either; bare ones are wrapped."""
    if isinstance(value, str):
        value = parse(value, "the definition of tools", place) if value.strip() else ()
    if value is None:
        return ()
    if isinstance(value, Mapping):
        value = (value,)
    if not isinstance(value, (list, tuple)):
        raise Unusable(f"the definition of tools is {kind(value)}, expected a list", "write a list of schemas", place)
    return tuple(_tool(tool, f"tool {number} of {place}") for number, tool in enumerate(value, 1))


def read_calls(value: Any, place: str) -> tuple[ToolCall, ...]:
    """Read calls of tools: one, a list of them, or JSON text of either."""
    if isinstance(value, str):
        value = parse(value, "a tool call", place)
    if value is None:
        return ()
    calls = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(_call(call, place) for call in calls)


def _tool(tool: Any, place: str) -> Tool:
    if not isinstance(tool, Mapping):
        raise Unusable(f"a tool is {kind(tool)}, expected an object", "write its JSON schema", place)
    if tool.get("type", "function") != "function":
        raise Unusable("a tool is not a function", f"leave the row out (found: type {shown(tool['type'])})", place)
    bare = {key: item for key, item in tool.items() if key != "type"}
    function = bare.get("function", bare)
    if not isinstance(function, Mapping):
        raise Unusable(f"the function of a tool is {kind(function)}, expected an object", "write its schema", place)
    text(_key(function, "name", "a tool", place), "the name of a tool", place=place)
    return {"type": "function", "function": plain(function, "a tool", place)}


def _call(call: Any, place: str) -> ToolCall:
    if not isinstance(call, Mapping):
        raise Unusable(f"a tool call is {kind(call)}, expected an object", _CALL, place)
    if call.get("type") not in (None, "function"):
        raise Unusable("a tool call is not of a function", f"leave the row out (type {shown(call['type'])})", place)
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        raise Unusable(f"the function of a tool call is {kind(function)}, expected an object", _CALL, place)
    name = text(_key(function, "name", "a tool call", place), "the name in a tool call", place=place)
    identity = call.get("id")
    return ToolCall(
        name,
        _arguments(_key(function, "arguments", "a tool call", place), place),
        None if identity is None else text(identity, "the id of a tool call", place=place),
    )


_CALL = 'write {"name": ..., "arguments": {...}}'


def _arguments(value: Any, place: str) -> Mapping[str, Any]:
    """An object, or JSON text of one; null and empty text mean none."""
    name = "the arguments object of a tool call"
    if isinstance(value, str):
        value = parse(value, name, place) if value.strip() else None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Unusable(f"{name} is {kind(value)}, expected an object", _CALL, place)
    arguments: Mapping[str, Any] = plain(value, name, place)
    return arguments


def _key(values: Mapping[str, Any], key: str, name: str, place: str) -> Any:
    if key not in values:
        raise Unusable(f"{name} has no {key}", f"add it (found: {listed(map(str, values))})", place)
    return values[key]
