"""Tool formats: how tools, calls and results are written as text, and read back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tunekit.values import Message, ToolCall

from .glm import Glm
from .hermes import Hermes
from .llama3 import Llama3
from .mistral import Mistral
from .react import React
from .text import Schema, TextFormat

__all__ = ["GLM", "HERMES", "LLAMA3", "MISTRAL", "REACT", "Chosen", "TextFormat", "Writing"]

HERMES, LLAMA3, MISTRAL, GLM, REACT = Hermes(), Llama3(), Mistral(), Glm(), React()


@runtime_checkable
class Writing(Protocol):
    """What an entry point of the group `tunekit.tool_formats` points to. The two are each other's inverse."""

    def write(self, messages: tuple[Message, ...], tools: tuple[Schema, ...]) -> tuple[Message, ...]:
        """The same conversation in plain messages."""
        ...

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What an answer says besides its calls, and the calls in it."""
        ...


@dataclass(frozen=True, slots=True)
class Chosen:
    """A tool format, and whether the recipe names it. `origin` is the distribution, with its version, that offers it:
    tokens that were kept are those of this version.
    """

    format: Writing
    named: bool
    origin: str

    def write(self, messages: tuple[Message, ...], tools: tuple[Schema, ...]) -> tuple[Message, ...]:
        """The same conversation in plain messages."""
        return self.format.write(messages, tools)

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What an answer says besides its calls, and the calls in it."""
        return self.format.parse(text)
