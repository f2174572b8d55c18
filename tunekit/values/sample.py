"""An answer that the model gave while it learns from its own answers, as a reward is asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .data import Message


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and an answer that the model gave to it.

    `prompt` is a conversation that ends before the answer; a text to continue is one turn of the user. `answer` is
    what was said, without special tokens. `finish` tells whether it ended by itself or at the length limit. `columns`
    holds all columns of the row that the prompt comes from, and `reference` the answer that the data gives, None where
    it gives none. `row` and `where` lead back to the row, `source` names its source.
    """

    prompt: tuple[Message, ...]
    answer: str
    finish: Literal["end", "length"] = "end"
    reference: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    row: int = 0
    where: str = ""
    source: str = ""

    @property
    def question(self) -> str:
        """What was said last before the answer."""
        return self.prompt[-1].content if self.prompt else ""

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The prompt with the answer."""
        return (*self.prompt, Message("assistant", self.answer))
