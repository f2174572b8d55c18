"""What all tool formats share: a conversation with tools written as plain messages, and read back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, ClassVar

from tunekit.values import Image, Message, ToolCall

Schema = Mapping[str, Any]
Found = tuple[int, tuple[ToolCall, ...]]
"""Where a piece of text with calls begins, and the calls in it."""

BAR = "\\"
"""What stands before a call that is only talked about, so that it is not read as one."""


class TextFormat(ABC):
    """A way to write tools as text, made of four pieces.

    Calls stand at the end of an answer, behind what it says and a line break. What is said stays as it is, but for
    one case: where it ends just as a call does, a backslash is set before that. So reading what was written gives
    both back.
    """

    thought: ClassVar[str] = ""
    """What stands before the words of an answer that goes on with calls."""
    between: ClassVar[str] = "\n"
    """What stands between two results."""

    @abstractmethod
    def tell(self, tools: Sequence[Schema]) -> str:
        """The tools and how to call them, for the system message."""

    @abstractmethod
    def calls(self, calls: Sequence[ToolCall]) -> str:
        """The calls at the end of an answer."""

    @abstractmethod
    def last(self, text: str) -> Found | None:
        """The last call of a text that ends with one, or all of them where they are one piece; else None."""

    @abstractmethod
    def result(self, message: Message) -> tuple[str, str, str]:
        """What stands before the result of a call, the result, and what stands after."""

    def write(self, messages: tuple[Message, ...], tools: tuple[Schema, ...]) -> tuple[Message, ...]:
        """The same conversation in plain messages: tools told in the system turn, calls and results in the text.

        Results that follow each other become one turn of the user, unless their weights differ. Weights, thinking,
        images and order are kept; the ids of calls only where the format writes them.
        """
        turns: list[Message] = []
        for (is_result, _), group in groupby(messages, key=lambda message: (message.role == "tool", _weight(message))):
            run = tuple(group)
            turns += [self._results(run)] if is_result else map(self._turn, run)
        return _told(turns, self.tell([*map(dict, tools)])) if tools else tuple(turns)

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What an answer says besides its calls, and the calls. A text that is no well-formed call is what it says."""
        calls: tuple[ToolCall, ...] = ()
        while (found := self.last(text)) and not text[: found[0]].endswith(BAR):
            start, more = found
            text, calls = text[:start].removesuffix("\n"), more + calls
        return self._unbar(text.removeprefix(self.thought) if calls else text), calls

    def _turn(self, message: Message) -> Message:
        if message.role != "assistant":
            return message
        said = self._bar(message.content)
        before = self.thought if message.tool_calls and said else ""
        parts = [before + said] if said else []
        content = "\n".join([*parts, self.calls(message.tool_calls)] if message.tool_calls else parts)
        images = tuple(
            replace(image, at=len(before) + image.at + (said[: image.at] != message.content[: image.at]))
            for image in message.images
        )
        return replace(message, content=content, tool_calls=(), images=images)

    def _results(self, messages: Sequence[Message]) -> Message:
        content, images = "", list[Image]()
        for message in messages:
            before, body, after = self.result(message)
            start = len(content) + (len(self.between) if content else 0) + len(before)
            images += _moved(message, start, body)
            content += (self.between if content else "") + before + body + after
        return Message("user", content, messages[0].weight, images=tuple(images))

    def _bar(self, said: str) -> str:
        found = self.last(said)
        return said if found is None else said[: found[0]] + BAR + said[found[0] :]

    def _unbar(self, said: str) -> str:
        found = self.last(said)
        if found is None or not said[: found[0]].endswith(BAR):
            return said
        return said[: found[0] - len(BAR)] + said[found[0] :]


def function_of(tool: Schema) -> Schema:
    """The function that a tool's schema describes, with or without OpenAI's `type` around it."""
    function: Schema = tool.get("function", tool)
    return function


def _weight(message: Message) -> float | None:
    return message.weight if message.role == "tool" else None


def _moved(message: Message, start: int, body: str) -> Iterable[Image]:
    """The images of a result at their places in the turn; before it where its text was rewritten."""
    for image in message.images:
        yield replace(image, at=start + (image.at if body == message.content else 0))


def _told(turns: Sequence[Message], told: str) -> tuple[Message, ...]:
    if not turns or turns[0].role != "system":
        return (Message("system", told), *turns)
    system = turns[0]
    content = f"{system.content}\n\n{told}" if system.content else told
    return (replace(system, content=content), *turns[1:])
