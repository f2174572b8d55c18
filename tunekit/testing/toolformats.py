"""What a tool format has to satisfy: what it writes it can read, and nothing but plain messages is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..values import Message, ToolCall, ToolFormat
from .plugins import PluginSuite

TOOLS: tuple[Mapping[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "find_river",
            "description": "Find the river that flows through a town.",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string"}, "depth": {"type": "number"}},
                "required": ["town"],
            },
        },
    },
)
CALLS = (
    ToolCall("find_river", {"town": "Amber"}),
    ToolCall("find_river", {"town": "Žďár \u6771\u4eac 🌊", "depth": 2.5}),
    ToolCall("find_river", {"town": 'a "quoted" \\ town\nin two lines', "near": ["x", {"y": None, "z": True}]}),
    ToolCall("find_river", {}),
)


class ToolFormatSuite(PluginSuite):
    """For plugins that write tools as text where the chat template cannot."""

    def format(self) -> ToolFormat:
        """The plugin's format."""
        found: ToolFormat = self.calls().own("tunekit_tool_format")
        return found

    def conversation(self, *calls: ToolCall, content: str = "") -> tuple[Message, ...]:
        """A question, calls, their results, and an answer."""
        results = tuple(Message("tool", f"the {number}th result", name=call.name) for number, call in enumerate(calls))
        return (
            Message("system", "You know rivers."),
            Message("user", "Which river flows through the town?"),
            Message("assistant", content, tool_calls=calls, thinking="Let me look.", weight=0.5),
            *results,
            Message("assistant", "The river is called the Amber."),
        )

    def written(self, *calls: ToolCall, content: str = "") -> tuple[Message, ...]:
        """The same in plain messages."""
        return self.format().write(self.conversation(*calls, content=content), TOOLS)

    def test_it_reads_the_calls_it_writes(self) -> None:
        """One call, each alone, and all at once: names, arguments and order come back."""
        for calls in (*((call,) for call in CALLS), CALLS):
            (turn, _) = (message for message in self.written(*calls) if message.role == "assistant")
            content, found = self.format().parse(turn.content)
            assert [(call.name, dict(call.arguments)) for call in found] == [
                (call.name, dict(call.arguments)) for call in calls
            ]
            assert content == ""

    def test_an_answer_without_calls_is_an_answer(self) -> None:
        """Text comes back as it is, with no call in it."""
        for text in ("The river is called the Amber.", "", 'It said {"name": 1}', "<b>bold</b>\n\nline"):
            assert self.format().parse(text) == (text, ())

    def test_only_plain_messages_are_left(self) -> None:
        """Any chat template can render them: no tool role, no calls beside the content, every result still there."""
        written = self.written(*CALLS[:2])
        assert {message.role for message in written} <= {"system", "user", "assistant"}
        assert not any(message.tool_calls for message in written)
        said = "\n".join(message.content for message in written)
        assert all(text in said for text in ("the 0th result", "the 1th result", "the Amber", "Which river"))

    def test_the_model_is_told_of_every_tool(self) -> None:
        """In the system turn, added to what it says already, or in one of its own."""
        system = self.written(CALLS[0])[0]
        assert system.role == "system"
        assert "You know rivers." in system.content
        assert "find_river" in system.content
        alone = self.format().write((Message("user", "Hi"), Message("assistant", "Hello")), TOOLS)
        assert "find_river" in alone[0].content

    def test_weights_and_thinking_stay_with_their_turns(self) -> None:
        """How a turn is trained does not depend on how its calls are written."""
        turns = [message for message in self.written(CALLS[0]) if message.role == "assistant"]
        assert [(turn.weight, turn.thinking) for turn in turns] == [(0.5, "Let me look."), (None, None)]

    def test_without_tools_nothing_changes(self) -> None:
        """A plain conversation is written as it is."""
        plain = (Message("user", "Hi"), Message("assistant", "Hello"))
        assert self.format().write(plain, ()) == plain
