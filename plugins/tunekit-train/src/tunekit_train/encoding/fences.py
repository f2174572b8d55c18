"""Special tokens that a message mentions stay text: fences are put around them before a template is rendered.

Without this a message that says `<|im_end|>` would end its turn, and could open another one in the assistant's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from . import faults

OPEN, CLOSE, PROBE = "\U000f0010", "\U000f0011", "\U000f0012"
"""Private characters: around a special token that is text, and around the number of a content that is sought."""

_RESERVED = re.compile(f"[{OPEN}{CLOSE}{PROBE}]")
_ESCAPED = re.compile(
    r"\\(?:udb80\\udc1|U000f001)[012](?:(.*?)\\(?:udb80\\udc1|U000f001)1)?", re.IGNORECASE | re.DOTALL
)
"""A private character as JSON escapes it, or Python, and the special token between two."""


class Fences:
    """The control tokens of one tokenizer, and how to keep their text apart from them.

    Control tokens are what `apply_chat_template(sanitize_control_tokens=True)` takes for such: the special tokens, and
    the added tokens among the `literals` that a template writes.
    """

    def __init__(self, tokenizer: Any, literals: tuple[str, ...] = ()) -> None:
        self.tokenizer = tokenizer
        self._literals = literals

    @cached_property
    def special(self) -> frozenset[str]:
        """The texts of the special tokens."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return frozenset([*added, *self.tokenizer.all_special_tokens])

    @cached_property
    def control(self) -> frozenset[str]:
        """The texts of the tokens that a message must not write."""
        named, written = self.tokenizer.chat_control_tokens, "\0".join(self._literals)
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if not token.special]
        if named is not None:
            return self.special | set(named).intersection(added)
        return self.special | {text for text in added if text in written and not text.isspace()}

    @cached_property
    def ending(self) -> re.Pattern[str]:
        """Blanks, then a special token: what ends a turn. The start token does not."""
        return re.compile(rf"\s*(?:{self._enders})")

    @cached_property
    def closing(self) -> re.Pattern[str]:
        """A special token that is not fenced, which takes a fence on both sides."""
        return re.compile(rf"(?<!{OPEN})(?:{self._enders})|(?:{self._enders})(?!{CLOSE})")

    @cached_property
    def _enders(self) -> str:
        begin, end = self.tokenizer.bos_token, self.tokenizer.eos_token
        return _alternatives(self.special - ({begin} if begin != end else set()))

    def ends(self, text: str) -> bool:
        """Whether a text ends with a special token, blanks aside."""
        return text.rstrip().endswith(tuple(self.special))

    @cached_property
    def _control_text(self) -> re.Pattern[str]:
        return re.compile(_alternatives(self.control))

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        """Letters of which a text has one where it has a control token; looking for these first is fast."""
        return tuple({token[0] for token in self.control if token})

    def fence(self, text: str) -> str:
        """Put fences around the control tokens in a text. Raises Fault where it holds private characters itself."""
        if not text.isascii() and _RESERVED.search(text):
            raise faults.reserved()
        if not any(letter in text for letter in self._beginnings):
            return text
        return self._control_text.sub(rf"{OPEN}\g<0>{CLOSE}", text)

    def fence_value(self, value: Any) -> Any:
        """Fence all text in plain data, keys too."""
        if isinstance(value, str):
            return self.fence(value)
        if isinstance(value, Mapping):
            return {self.fence_value(key): self.fence_value(inner) for key, inner in value.items()}
        return [self.fence_value(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def fenced(text: str) -> bool:
    """Whether a rendered text has fences in it. Raises Fault where a template has turned fences into escapes."""
    if text.isascii() and "\\" not in text:
        return False
    if escaped := _ESCAPED.search(text):
        raise faults.forged(escaped[1] or escaped[0])
    return not text.isascii() and _RESERVED.search(text) is not None


def fence_pattern(tokenizer: Any) -> re.Pattern[str]:
    """A token with a fence on either side, or a fence that has lost its other half.

    Where a template cuts a message off at a token, half a fence is left. It must not close around what the template
    writes behind it, and so only tokens are fenced.
    """
    tokens = [*(token.content for token in tokenizer.added_tokens_decoder.values()), *tokenizer.all_special_tokens]
    return re.compile(f"{OPEN}({_alternatives(frozenset(tokens))}){CLOSE}|[{OPEN}{CLOSE}]")


def pieces(text: str, pattern: re.Pattern[str], breaks: tuple[int, ...] = ()) -> Iterator[tuple[int, str, bool]]:
    """The pieces of a fenced text: where each starts, what it says, and whether it was fenced.

    `pattern` is that of the fences. What is not fenced is parted at the places `breaks` too.
    """
    place = 0
    for fence in pattern.finditer(text):
        yield from _parted(text, place, fence.start(), breaks)
        if fence.group(1):
            yield fence.start(1), fence.group(1), True
        place = fence.end()
    yield from _parted(text, place, len(text), breaks)


def _parted(text: str, start: int, end: int, breaks: tuple[int, ...]) -> Iterator[tuple[int, str, bool]]:
    for right in (*(place for place in breaks if start < place < end), end):
        if start < right:
            yield start, text[start:right], False
        start = right


def _alternatives(texts: frozenset[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=lambda text: (-len(text), text)))) or "(?!)"
