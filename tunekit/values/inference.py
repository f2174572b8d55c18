"""Asking a model: settings, answers, and what every inference backend offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from .data import Message

Prompt = str | Sequence[Message]
"""A text to continue, or a conversation to answer."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How to generate. `temperature` 0 is greedy; `stop` strings end an answer and are not part of it."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said; `finish` tells whether it ended by itself, at a stop string, or at the length limit."""

    text: str
    tokens: int
    finish: Literal["end", "stop", "length"]


@dataclass(frozen=True, slots=True)
class TextScore:
    """The model's log-likelihood of a text, in nats, summed over `tokens` predicted tokens."""

    log_likelihood: float
    tokens: int


@runtime_checkable
class Backend(Protocol):
    """What `tunekit_infer_backend` returns."""

    def generate(self, prompts: Sequence[Prompt], settings: GenerationSettings) -> list[Answer]:
        """Answer all prompts, batched; answers come in the order of the prompts."""
        ...

    def stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[str]:
        """Answer one prompt piece by piece; the pieces joined are what `generate` returns."""
        ...

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """Log-likelihood of each text; its first token is given, not predicted."""
        ...
