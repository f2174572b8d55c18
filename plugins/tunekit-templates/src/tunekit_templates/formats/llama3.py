"""Llama 3: a call is a line of JSON with name and parameters, as Llama 3.1 to 3.3 write it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tunekit.values import Message, ToolCall

from .notation import from_json, to_call, to_json
from .text import BAR, Found, Schema, TextFormat


class Llama3(TextFormat):
    """`{"name": ..., "parameters": {...}}`, several as a list; results as JSON strings. Ids are not kept."""

    def tell(self, tools: Sequence[Schema]) -> str:
        """Every schema, indented."""
        schemas = "\n\n".join(json.dumps(tool, indent=4, ensure_ascii=False) for tool in tools)
        return (
            "You have access to the following functions. To call a function, please respond with JSON for a "
            'function call.Respond in the format {"name": function name, "parameters": dictionary of argument name '
            f"and its value}}.Do not use variables.\n\n{schemas}"
        )

    def calls(self, calls: Sequence[ToolCall]) -> str:
        """One object, or a list of several."""
        values = [{"name": call.name, "parameters": dict(call.arguments)} for call in calls]
        return to_json(values[0] if len(values) == 1 else values)

    def last(self, text: str) -> Found | None:
        """The last line."""
        text = text.rstrip()
        line = text[text.rfind("\n") + 1 :].lstrip(BAR)
        value = from_json(line)
        values = value if isinstance(value, list) and value else [value]
        calls = tuple(call for call in (to_call(each, "parameters") for each in values) if call is not None)
        return (len(text) - len(line), calls) if len(calls) == len(values) else None

    def result(self, message: Message) -> tuple[str, str, str]:
        """The result as a JSON string."""
        return "", to_json(message.content), ""
