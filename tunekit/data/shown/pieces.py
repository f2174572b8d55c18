"""Token ids as text that can be read: each token where it is whole characters, several joined where they make one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

BROKEN = "\ufffd"
"""What a tokenizer decodes bytes to that are no whole character."""
JOINED = 16
"""Tokens that are joined in the search for a whole character; a character has at most four bytes."""
MARKS = {"\n": "⏎", "\r": "␍", "\t": "⇥"}


@dataclass(frozen=True, slots=True)
class Piece:
    """The least run of tokens that is whole characters: nearly always one token.

    `text` is what it stands for, `start` the place of its first token in the sequence, `weights` are the loss weights
    of its tokens as targets. `special`: one of the tokenizer's special tokens.
    """

    text: str
    start: int
    ids: tuple[int, ...]
    weights: tuple[float, ...]
    special: bool = False

    @property
    def weight(self) -> float:
        """The largest loss weight in it."""
        return max(self.weights)

    @property
    def visible(self) -> str:
        """The text with a mark for every character that cannot be seen; a mark of a new line is followed by one."""
        return "".join(map(_visible, self.text)) or "∅"

    def __str__(self) -> str:
        ids = ", ".join(map(str, self.ids))
        weights = ", ".join(f"{weight:g}" for weight in dict.fromkeys(self.weights))
        several = len(self.ids) > 1
        number = f"tokens {self.start + 1} to {self.start + len(self.ids)}" if several else f"token {self.start + 1}"
        return f"{number}: id{'s' if several else ''} {ids}, weight {weights}"


def pieces_of(
    tokenizer: Any, ids: Sequence[int], weights: Sequence[float], start: int = 0, end: int | None = None
) -> Iterator[Piece]:
    """Decode the tokens from `start` to `end`. The first token of a sequence is never a target, so its weight is 0."""
    numbers = [int(number) for number in ids[: len(ids) if end is None else end]]
    special = special_ids(tokenizer)
    before: list[int] = numbers[max(0, start - 1) : start]
    while start < len(numbers):
        text, stop = _whole(tokenizer, numbers, start, before, special)
        own = numbers[start:stop]
        targets = tuple(float(weights[at]) if at else 0.0 for at in range(start, stop))
        yield Piece(text, start, tuple(own), targets, own[0] in special)
        before, start = own, stop


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of all special tokens, those that were added included."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(getattr(tokenizer, "all_special_ids", ())) | {
        number for number, token in added.items() if token.special
    }


def _whole(
    tokenizer: Any, ids: Sequence[int], start: int, before: Sequence[int], special: frozenset[int]
) -> tuple[str, int]:
    """The text of the token at `start` and of those after it that it takes to be whole characters; where they end."""
    first = _text(tokenizer, ids[start : start + 1], before)
    if ids[start] in special or BROKEN not in first:
        return first, start + 1
    for stop in range(start + 2, min(start + JOINED, len(ids)) + 1):
        if ids[stop - 1] in special:
            break
        text = _text(tokenizer, ids[start:stop], before)
        if BROKEN not in text:
            return text, stop
    return first, start + 1


def _text(tokenizer: Any, ids: Sequence[int], before: Sequence[int]) -> str:
    """Decode tokens as they read after those before: some tokenizers drop a space at the start of what they decode."""
    both, head = _decode(tokenizer, [*before, *ids]), _decode(tokenizer, before)
    return both[len(head) :] if BROKEN not in head and both.startswith(head) else _decode(tokenizer, ids)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _visible(character: str) -> str:
    if character in MARKS:
        return MARKS[character] + ("\n" if character == "\n" else "")
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    if unicodedata.category(character) in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}:
        return f"\\u{ord(character):04x}"
    return character
