"""Mistral: a JSON list of calls after `[TOOL_CALLS]`, as Mistral 7B Instruct v0.3 writes it."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.values import Message, ToolCall

from .notation import from_json, to_call, to_json
from .text import Found, Schema, TextFormat

MARK = "[TOOL_CALLS]"


class Mistral(TextFormat):
    """`[TOOL_CALLS] [{"name": ..., "arguments": {...}}]`; results after `[TOOL_RESULTS]`. Ids are kept."""

    between = ""

    def tell(self, tools: Sequence[Schema]) -> str:
        """The schemas as one JSON list."""
        return f"[AVAILABLE_TOOLS] {to_json(list(tools))}[/AVAILABLE_TOOLS]"

    def calls(self, calls: Sequence[ToolCall]) -> str:
        """One list of all calls."""
        values = [
            {"name": call.name, "arguments": dict(call.arguments), **({} if call.id is None else {"id": call.id})}
            for call in calls
        ]
        return f"{MARK} {to_json(values, MARK)}"

    def last(self, text: str) -> Found | None:
        """The list after the last mark."""
        head, mark, tail = text.rpartition(MARK)
        values = from_json(tail) if mark else None
        if not isinstance(values, list) or not values:
            return None
        calls = tuple(call for call in (to_call(each, optional=("id",)) for each in values) if call is not None)
        return (len(head), calls) if len(calls) == len(values) else None

    def result(self, message: Message) -> tuple[str, str, str]:
        """An object with the result, as the JSON it is or as a string, and the id of the call."""
        content = message.content if from_json(message.content) is not None else to_json(message.content)
        identity = "" if message.call is None else f', "call_id": {to_json(message.call)}'
        return "[TOOL_RESULTS] ", f'{{"content": {content}{identity}}}', "[/TOOL_RESULTS]"
