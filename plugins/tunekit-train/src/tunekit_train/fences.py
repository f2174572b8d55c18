"""Special tokens that a message mentions stay text: fenced while a template is rendered, tokenised as plain text after.

Without this a message that says `<|im_end|>` would end its turn, and could open another one in the assistant's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

OPEN, CLOSE, PROBE = "\U000f0010", "\U000f0011", "\U000f0012"
"""Private characters: around a special token that is text, and in the place of a content whose place is sought."""

_RESERVED = re.compile(f"[{OPEN}{CLOSE}{PROBE}]")
_FENCED = re.compile(f"{OPEN}(.*?){CLOSE}|[{OPEN}{CLOSE}]", re.DOTALL)


class Forged(ValueError):
    """A text that cannot be kept apart from special tokens; the message says why."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids and the characters of the text that each one covers."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def encode(tokenizer: Any, texts: list[str], **options: Any) -> list[Tokens]:
    """Tokenise texts as they are, nothing added, in one batch."""
    if not texts:
        return []
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False, **options}
    out = tokenizer(texts, return_offsets_mapping=True, **options)
    return [Tokens(ids, offsets) for ids, offsets in zip(out["input_ids"], out["offset_mapping"], strict=True)]


class Fences:
    """The special tokens of one tokenizer, and how to keep their text apart from them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def special(self) -> dict[int, str]:
        """The text of each special token by its id."""
        added = self.tokenizer.added_tokens_decoder
        return {number: token.content for number, token in added.items() if token.special}

    @cached_property
    def ending(self) -> re.Pattern[str]:
        """Blanks, then a special token: what ends a turn."""
        return re.compile(rf"\s*(?:{self._special_text.pattern})")

    def ends(self, text: str) -> bool:
        """Whether a text ends with a special token, blanks aside."""
        return text.rstrip().endswith(tuple(self.special.values()))

    @cached_property
    def _special_text(self) -> re.Pattern[str]:
        longest_first = sorted(self.special.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def fence(self, content: str) -> str:
        """Put fences around the special tokens in a message. Raises Forged where it holds private characters itself."""
        if _RESERVED.search(content):
            raise Forged("a message contains a character from U+F0010 to U+F0012, which is reserved for rendering")
        return self._special_text.sub(rf"{OPEN}\g<0>{CLOSE}", content)

    def fenced(self, text: str) -> bool:
        """Whether a rendered text has fences in it."""
        return _RESERVED.search(text) is not None

    def encode(self, text: str) -> Tokens:
        """Tokenise a fenced text; the fences vanish, but offsets count them.

        Raises Forged where the tokenizer makes a special token even of fenced text.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, piece, as_text in _pieces(text):
            tokens = self._piece(piece, as_text, first=start == 0)
            if as_text and not self.special.keys().isdisjoint(tokens.ids):
                raise Forged(
                    f"the tokenizer makes a special token of {piece!r} in a message, though it is to stay text"
                )
            ids += tokens.ids
            offsets += [(start + left, start + right) for left, right in tokens.offsets]
        return Tokens(ids, offsets)

    def _piece(self, piece: str, as_text: bool, first: bool) -> Tokens:
        """Tokenise a piece from the middle of a text.

        It goes behind a newline, whose tokens are then dropped, because some tokenizers put a space before the start
        of a text.
        """
        newline, behind, alone = encode(self.tokenizer, ["\n", "\n" + piece, piece], split_special_tokens=as_text)
        width = len(newline.ids)
        if first or behind.ids[:width] != newline.ids:
            return alone
        return Tokens(behind.ids[width:], [(max(left - 1, 0), right - 1) for left, right in behind.offsets[width:]])


def _pieces(text: str) -> Iterator[tuple[int, str, bool]]:
    """The pieces of a fenced text: where each starts, what it says, and whether it was fenced."""
    place = 0
    for fence in _FENCED.finditer(text):
        if fence.start() > place:
            yield place, text[place : fence.start()], False
        if fence.group(1):
            yield fence.start(1), fence.group(1), True
        place = fence.end()
    if place < len(text):
        yield place, text[place:], False
