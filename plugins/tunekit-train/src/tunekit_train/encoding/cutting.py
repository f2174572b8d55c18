"""Sequences that are too long: which tokens stay.

The policy, for a conversation of more than `max_length` tokens whose first trained answer is `answer`:

1. The oldest exchanges in which nothing is trained go first, whole, as many as need be: there are such where only the
   last answer is trained (`supervise: last`, preferences, labelled answers), or by the weights of messages. The system
   turn stays. What is left is rendered anew.
2. Where the answer then ends within the limit, all that lies beyond the limit goes, from the right.
3. Else the contents of the prompt are shortened. Room is what the limit leaves beside the prompt's *structure*, which
   is all the template writes there: headers, turn ends, tools. The answer gets half the room, or what it needs where
   that is less, or what the prompt does not need where that is more. The prompt's contents get the rest: the longest
   of them is shortened until it is as long as the next, and so on. A content loses its middle, and keeps as much of
   its beginning as of its end.
4. What is left of the sequence beyond the limit goes, from the right.
5. A sequence cut from the right ends with its last trained token. A character of several tokens stays or goes whole.

So the header of the answer is always there, and an answer that is cut off has neither its end token nor anything
behind it. Documents are cut from the right. A pair shares one prompt, shortened for the longer of its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .tokens import Ids, Weights

Indices = NDArray[np.intp]
Span = tuple[int, int]


def shorten(prompt: int, contents: Sequence[Span], answer: int, limit: int, boundaries: NDArray[np.bool_]) -> Indices:
    """The tokens of a prompt that stay, by index.

    The prompt has `prompt` tokens; `contents` are the tokens [first, last) of it that may be shortened, apart from each
    other and in order; `answer` counts the tokens of the answer. `boundaries` says which tokens begin a character.
    """
    lengths = [last - first for first, last in contents]
    room = max(0, limit - (prompt - sum(lengths)))
    granted = min(answer, max((room + 1) // 2, room - sum(lengths)))
    kept = np.ones(prompt, dtype=bool)
    for (first, last), length in zip(contents, level(lengths, room - granted), strict=True):
        if length < last - first:
            head, tail = first + (length + 1) // 2, last - length // 2
            kept[_back(head, first, boundaries) : _ahead(tail, last, boundaries)] = False
    return np.flatnonzero(kept)


def level(lengths: Sequence[int], total: int) -> list[int]:
    """Shorten the longest until together they are `total`; none gets shorter than those it was longer than."""
    found = list(lengths)
    for rank, index in enumerate(sorted(range(len(lengths)), key=lambda index: lengths[index])):
        found[index] = min(lengths[index], max(0, total) // (len(lengths) - rank))
        total -= found[index]
    return found


def end_within(length: int, limit: int, weights: Weights, boundaries: NDArray[np.bool_]) -> int:
    """Where to end a sequence: behind its last trained token within the limit. 0 where none is left."""
    if length <= limit:
        return length
    trained = np.flatnonzero(weights[: _back(limit, 0, boundaries)])
    return int(trained[-1]) + 1 if len(trained) else 0


def blocks(ids: Ids, limit: int) -> Iterator[Ids]:
    """A document in blocks. Each begins with the token the one before ends with, so that every token is predicted."""
    yield ids[:limit]
    for start in range(limit, len(ids), max(1, limit - 1)):
        yield ids[start - 1 : start - 1 + limit]


def _back(place: int, least: int, boundaries: NDArray[np.bool_]) -> int:
    """Move an end back to where a character ends."""
    while least < place < len(boundaries) and not boundaries[place]:
        place -= 1
    return place


def _ahead(place: int, most: int, boundaries: NDArray[np.bool_]) -> int:
    """Move a beginning ahead to where a character begins."""
    while place < most and not boundaries[place]:
        place += 1
    return place
