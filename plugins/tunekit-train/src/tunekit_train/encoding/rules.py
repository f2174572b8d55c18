"""The rules by which examples become sequences: what is trained, and what happens to what is too long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Supervise = Literal["assistant", "last", "all"]
Thinking = Literal["keep", "last", "drop", "mask"]
TooLong = Literal["cut", "drop", "split"]


@dataclass(frozen=True)
class Rules:
    """How examples are encoded.

    `supervise`: train every `assistant` turn, the `last` of them, or `all` tokens but results of tools. A message's own
    weight goes before the rule.
    `thinking`: `keep` what the assistant thinks as the template renders it; keep it only in the `last` answer, which is
    what follows the last turn of the user; `drop` it everywhere; or `mask` it: shown, tags and all, and not trained.
    `max_length`: tokens a sequence may have; None for any number.
    `too_long`: `cut` a sequence that is longer (`cutting` says how), `drop` its row, or `split` a document into blocks
    and a conversation into several at its exchanges. Preferences and labelled answers are cut where others are split.
    """

    supervise: Supervise = "assistant"
    thinking: Thinking = "keep"
    max_length: int | None = None
    too_long: TooLong = "cut"

    def __post_init__(self) -> None:
        assert self.max_length is None or self.max_length > 0, "max_length counts tokens"
