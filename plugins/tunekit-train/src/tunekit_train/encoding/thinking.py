"""Where thinking lies in a rendered answer, tags and all."""

from __future__ import annotations

import re
from bisect import bisect_left

OPENING, CLOSING = "<think>\n", "\n</think>\n\n"
"""How Qwen3 and DeepSeek write thinking before an answer; used where a template has no key for it."""

_TAG_BEFORE = re.compile(r"<think>\s*\Z")
_TAGS_LAST = re.compile(r"<think>\s*(?:</think>\s*)?\Z")
_TAG_AFTER = re.compile(r"\s*</think>\s*")


def write(thinking: str, content: str) -> str:
    """Write thinking in front of what is said."""
    return f"{OPENING}{thinking}{CLOSING}{content}"


def without_opening(prompt: str) -> str:
    """A generation prompt without the thinking tags that it may end with."""
    return _TAGS_LAST.sub("", prompt)


def tag_before(text: str, place: int) -> int:
    """Where an opening tag that ends at this place begins; the place itself where there is none."""
    found = _TAG_BEFORE.search(text, max(0, place - 64), place)
    return found.start() if found else place


def region(text: str, without: str | None, turn: int, start: int, end: int) -> tuple[int, int]:
    """The characters that belong to the thinking at `start` up to `end`: what is more than in the text `without` it.

    The tags around it count in any case. The turn that it is part of begins at `turn`.
    """
    after = _TAG_AFTER.match(text, end)
    left, right = tag_before(text, start), after.end() if after else end
    if without is None:
        return left, right
    longer, place = len(text) - len(without), common(text, without)
    if longer <= 0 or text[place + longer :] != without[place:]:
        return left, right
    # What follows may begin as what was put in does, and then it may have been put in further left.
    leftmost = left if left < start else turn
    while place > leftmost and text[place - 1] == text[place - 1 + longer]:
        place -= 1
    inside = place <= start and end <= place + longer
    return (min(left, place), max(right, place + longer)) if inside else (left, right)


def common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    most = min(len(one), len(other))
    return bisect_left(range(1, most + 1), True, key=lambda count: one[:count] != other[:count])
