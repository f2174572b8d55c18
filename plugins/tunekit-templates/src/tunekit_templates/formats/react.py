"""ReAct: thought, action and its input on lines of their own, which any chat template can carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunekit.values import Message, ToolCall

from .notation import from_json, from_line, to_json, to_line
from .text import BAR, Found, Schema, TextFormat, function_of

ACTION, INPUT = "Action: ", "Action Input:"


class React(TextFormat):
    """`Action:` and `Action Input:` for each call, `Thought:` before them, `Observation:` for results.

    ReAct (arXiv 2210.03629), with the words of LLaMA-Factory's default. Ids are not kept.
    """

    thought = "Thought: "

    def tell(self, tools: Sequence[Schema]) -> str:
        """A list of the tools with their arguments, and the lines to write."""
        functions = [function_of(tool) for tool in tools]
        names = ", ".join(str(function["name"]) for function in functions)
        return (
            f"You have access to the following tools:\n{''.join(map(_listed, functions))}"
            "Use the following format if using a tool:\n```\n"
            "Thought: why you use it\n"
            f"Action: tool name (one of [{names}])\n"
            "Action Input: the input to the tool, in a JSON format representing the kwargs "
            '(e.g. ```{"input": "hello world", "num_beams": 5}```)\n```\n'
        )

    def calls(self, calls: Sequence[ToolCall]) -> str:
        """Two lines for each call."""
        return "\n".join(f"{ACTION}{to_line(call.name)}\n{INPUT} {to_json(call.arguments)}" for call in calls)

    def last(self, text: str) -> Found | None:
        """The last `Action Input:` at the start of a line, with the `Action:` on the line before."""
        head, found, given = text.rpartition(f"\n{INPUT}")
        line = head[head.rfind("\n") + 1 :].lstrip(BAR)
        name = from_line(line.removeprefix(ACTION).strip()) if found and line.startswith(ACTION) else None
        arguments = from_json(given)
        if name is None or not isinstance(arguments, dict):
            return None
        return len(head) - len(line), (ToolCall(name, arguments),)

    def result(self, message: Message) -> tuple[str, str, str]:
        """The result behind its label."""
        return "Observation: ", message.content, ""


def _listed(function: Schema) -> str:
    parameters = _object(function.get("parameters"))
    arguments = "".join(_arguments(_object(parameters.get("properties")), parameters.get("required")))
    return (
        f"> Tool Name: {function['name']}\nTool Description: {function.get('description', '')}\n"
        f"Tool Args:\n{arguments}\n"
    )


def _arguments(properties: Mapping[str, Any], required: Any) -> Iterator[str]:
    """A line for each argument; what a line has no words for is told as JSON."""
    needed = required if isinstance(required, (list, tuple)) else ()
    for name, schema in properties.items():
        described = {**schema} if isinstance(schema, Mapping) else {"schema": schema}
        kind, words = described.pop("type", ""), described.pop("description", "")
        line = f"  - {name} ({kind}{', required' if name in needed else ''}): {words}"
        choices = described.pop("enum", None) if isinstance(described.get("enum"), (list, tuple, type(None))) else None
        if choices:
            line += f", should be one of [{', '.join(map(str, choices))}]"
        if set(_object(described.get("items"))) == {"type"}:
            line += f", where each item should be {described.pop('items')['type']}"
        yield f"{line}, as {to_json(described)}\n" if described else f"{line}\n"


def _object(value: Any) -> Mapping[str, Any]:
    """A schema may say anything where an object belongs; then it tells of no arguments."""
    return value if isinstance(value, Mapping) else {}
