"""What a template is given: messages as the mappings that transformers documents, and tools."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tunekit.values import Message, ToolCall

from . import thinking
from .template import Template, Tools, Turns

Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """Messages as the template takes them, with the tools it is to write."""

    messages: Messages
    tools: Tools
    template: Template
    json_arguments: bool = False

    def turns(self, end: int | None = None) -> Turns:
        """The messages up to one as mappings."""
        return [self._turn(message) for message in self.messages[:end]]

    def render(self, end: int | None = None, prompt: bool = False) -> str:
        """Render the messages up to one. Raises Fault."""
        return self.template.render(self.turns(end), self.tools, prompt)

    def _turn(self, message: Message) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thinking is not None:
            if self.template.reads_thinking:
                turn["reasoning_content"] = message.thinking
            else:
                turn["content"] = thinking.write(message.thinking, message.content)
        if self.template.wants_parts:
            turn["content"] = [{"type": "text", "text": turn["content"]}]
        if message.tool_calls:
            turn["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.name is not None:
            turn["name"] = message.name
        if message.call is not None:
            turn["tool_call_id"] = message.call
        return turn

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = json.dumps(call.arguments, ensure_ascii=False) if self.json_arguments else dict(call.arguments)
        told = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
        return told if call.id is None else {**told, "id": call.id}
