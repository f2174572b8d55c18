"""GLM: the function's name on a line, its arguments as JSON on the next, as GLM-4 writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tunekit.values import Message, ToolCall

from .notation import from_json, from_line, to_json, to_line
from .text import BAR, Found, Schema, TextFormat, function_of


class Glm(TextFormat):
    """Two lines for each call; results as they are. Ids are not kept."""

    def tell(self, tools: Sequence[Schema]) -> str:
        """A heading and the schema of each function, in Chinese as GLM-4 was taught."""
        functions = (function_of(tool) for tool in tools)
        return "# 可用工具" + "".join(
            f"\n\n## {function['name']}\n\n{json.dumps(function, indent=4, ensure_ascii=False)}"
            "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"  # noqa: RUF001
            for function in functions
        )

    def calls(self, calls: Sequence[ToolCall]) -> str:
        """Two lines for each call."""
        return "\n".join(f"{to_line(call.name)}\n{to_json(call.arguments)}" for call in calls)

    def last(self, text: str) -> Found | None:
        """The last two lines."""
        head, broken, line = text.rstrip().rpartition("\n")
        arguments = from_json(line) if broken else None
        name_line = head[head.rfind("\n") + 1 :].lstrip(BAR)
        name = from_line(name_line)
        if name is None or not isinstance(arguments, dict):
            return None
        return len(head) - len(name_line), (ToolCall(name, arguments),)

    def result(self, message: Message) -> tuple[str, str, str]:
        """The result as it is."""
        return "", message.content, ""
