"""A conversation made ready for the template: fenced, its thinking ruled, its tools written, each message weighed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import Example, Message, ToolCall, ToolFormat

from . import faults
from .fences import Fences
from .rules import Rules, Thinking
from .script import Messages


@dataclass(frozen=True, slots=True)
class Talk:
    """Messages for the template to render, and the weight of each: `weights` by index, of all others `rest`.

    `prompt` counts the messages that come before a preferred answer; 0 where there is no such thing.
    """

    messages: Messages
    weights: Mapping[int, float]
    rest: float = 0.0
    tools: tuple[Mapping[str, Any], ...] = ()
    prompt: int = 0

    def weight(self, index: int) -> float:
        """The weight of one message."""
        return self.weights.get(index, self.rest)

    def part(self, kept: list[int]) -> Talk:
        """The same with some of its messages."""
        weights = {place: self.weights[index] for place, index in enumerate(kept) if index in self.weights}
        prompt = sum(1 for index in kept if index < self.prompt)
        messages = tuple(self.messages[index] for index in kept)
        return replace(self, messages=messages, weights=weights, prompt=prompt)


class Talks:
    """Makes talks of examples. `marker` is what stands for an image in a text; None where the model reads none."""

    def __init__(
        self,
        rules: Rules,
        fences: Fences,
        tool_format: ToolFormat | None,
        template_writes_tools: bool,
        marker: str | None = None,
    ) -> None:
        self.rules = rules
        self.fences = fences
        self.tool_format = tool_format
        self.marker = marker
        self.by_template = template_writes_tools and not (tool_format is not None and tool_format.named)

    def make(self, example: Example) -> list[Talk]:
        """One talk of a conversation; of a preference two, chosen and rejected. Raises Fault."""
        if not example.chosen and not example.rejected:
            return [self._conversation(example)]
        chosen, rejected = example.messages + example.chosen, example.messages + example.rejected
        return self._same_prompt(example, [self._pair(example, messages) for messages in (chosen, rejected)])

    def _conversation(self, example: Example) -> Talk:
        supervise = self.rules.supervise if example.label is None else "last"
        messages, tools = self.ready(example, example.messages)
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if not answers and supervise != "all":
            raise faults.no_answer()
        if supervise == "all":
            ruled = {index: 0.0 for index, message in enumerate(messages) if message.role == "tool"}
        else:
            ruled = dict.fromkeys(answers if supervise == "assistant" else answers[-1:], 1.0)
        return Talk(messages, _with_own(ruled, messages, 0), 1.0 if supervise == "all" else 0.0, tools)

    def _pair(self, example: Example, whole: Messages) -> Talk:
        messages, tools = self.ready(example, whole)
        prompt = len(self.ready(example, example.messages)[0]) if example.messages else 0
        answers = [index for index in range(prompt, len(messages)) if messages[index].role == "assistant"]
        if not answers:
            raise faults.no_answer()
        return Talk(messages, _with_own(dict.fromkeys(answers, 1.0), messages, prompt), 0.0, tools, prompt)

    def _same_prompt(self, example: Example, pair: list[Talk]) -> list[Talk]:
        chosen, rejected = pair
        if chosen.messages == rejected.messages:
            raise faults.same_answers(shortened=False)
        said = [[replace(message, thinking=None) for message in talk.messages[: talk.prompt]] for talk in pair]
        if said[0] != said[1]:
            raise faults.tools_not_written("it writes the prompt differently for the chosen and the rejected answer")
        return pair

    def ready(self, example: Example, messages: Messages) -> tuple[Messages, tuple[Mapping[str, Any], ...]]:
        """Fence the messages, rule their thinking and write the tools; give the tools that the template is to write."""
        if self.marker is None and any(message.images for message in messages):
            raise faults.images()
        ruled = tuple(map(self._fence, rule_thinking(messages, self.rules.thinking)))
        if self._plain(ruled, example.tools):
            return ruled, ()
        tools = tuple(self.fences.fence_value(tool) for tool in example.tools)
        return (ruled, tools) if self.by_template else (self._write(ruled, tools), ())

    def _plain(self, messages: Messages, tools: tuple[Mapping[str, Any], ...]) -> bool:
        return not tools and not any(message.tool_calls or message.role == "tool" for message in messages)

    def _write(self, messages: Messages, tools: tuple[Mapping[str, Any], ...]) -> Messages:
        if self.tool_format is None:
            raise faults.no_tool_format()
        try:
            return self.tool_format.write(messages, tools)
        except (ValueError, TunekitError) as error:
            raise faults.tools_not_written(error) from error

    def _fence(self, message: Message) -> Message:
        """Fence one message; the same object where there is nothing to fence."""
        fence = self.fences.fence
        content = self._with_markers(message) if message.images else fence(message.content)
        if message.thinking is None and not message.tool_calls and message.name is None and message.call is None:
            return message if content == message.content else replace(message, content=content)
        optional: dict[str, Any] = {
            name: fence(text) for name in ("thinking", "name", "call") if (text := getattr(message, name)) is not None
        }
        calls = tuple(self._fence_call(call) for call in message.tool_calls)
        return replace(message, content=content, tool_calls=calls, **optional)

    def _with_markers(self, message: Message) -> str:
        """The fenced content, with a marker wherever an image stands: the only special tokens that a message brings."""
        written, last = "", 0
        for image in message.images:
            written += f"{self.fences.fence(message.content[last : image.at])}{self.marker}"
            last = image.at
        return written + self.fences.fence(message.content[last:])

    def _fence_call(self, call: ToolCall) -> ToolCall:
        identity = None if call.id is None else self.fences.fence(call.id)
        return ToolCall(self.fences.fence(call.name), self.fences.fence_value(call.arguments), identity)


def rule_thinking(messages: Messages, rule: Thinking) -> Messages:
    """Leave out the thinking that the rule does not show. The last answer is all that follows the user's last turn."""
    if rule in ("keep", "mask") or not any(message.thinking is not None for message in messages):
        return messages
    shown = len(messages)
    if rule == "last":
        asked = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        shown = next((index for index in answers if index > asked), answers[-1] if answers else shown)
    return tuple(
        message if index >= shown or message.thinking is None else replace(message, thinking=None)
        for index, message in enumerate(messages)
    )


def _with_own(ruled: dict[int, float], messages: Messages, start: int) -> dict[int, float]:
    """The weights by rule, and over them those that messages bring along."""
    own = {
        index: message.weight for index, message in enumerate(messages) if index >= start and message.weight is not None
    }
    return dict(sorted({**ruled, **own}.items())) if own else ruled
