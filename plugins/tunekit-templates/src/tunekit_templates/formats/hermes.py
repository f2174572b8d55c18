"""Hermes: JSON between `<tool_call>` tags, as Qwen 2.5 and 3 and Nous Hermes write it."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.values import Message, ToolCall

from .notation import from_json, to_call, to_json
from .text import Found, Schema, TextFormat

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes(TextFormat):
    """`<tool_call>` with name and arguments; results between `<tool_response>` tags. Ids are not kept."""

    def tell(self, tools: Sequence[Schema]) -> str:
        """The signatures between `<tools>` tags."""
        signatures = "".join(f"\n{to_json(tool)}" for tool in tools)
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>{signatures}\n</tools>\n\n"
            "For each function call, return a json object with function name and arguments within "
            "<tool_call></tool_call> XML tags:\n<tool_call>\n"
            '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
        )

    def calls(self, calls: Sequence[ToolCall]) -> str:
        """One pair of tags for each call."""
        bodies = (to_json({"name": call.name, "arguments": dict(call.arguments)}, OPEN, CLOSE) for call in calls)
        return "\n".join(f"{OPEN}\n{body}\n{CLOSE}" for body in bodies)

    def last(self, text: str) -> Found | None:
        """The last pair of tags."""
        head, opened, tail = text.rstrip().rpartition(OPEN)
        if not opened or not tail.endswith(CLOSE):
            return None
        call = to_call(from_json(tail.removesuffix(CLOSE)))
        return None if call is None else (len(head), (call,))

    def result(self, message: Message) -> tuple[str, str, str]:
        """A pair of tags of its own."""
        return "<tool_response>\n", message.content, "\n</tool_response>"
