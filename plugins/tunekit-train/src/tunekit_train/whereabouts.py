"""Where rows stand (`alpaca.json, row 17`), kept as a few texts with a gap and a number for each."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"(0|[1-9][0-9]{0,17})(?![0-9])(?=[^0-9]*\Z)")
NONE = -1


class Whereabouts:
    """The texts around the numbers: as many as there are files, not as there are rows."""

    def __init__(self, texts: Iterable[Iterable[str]] = ()) -> None:
        self.texts = [tuple(pair) for pair in texts]
        self._known = {pair: at for at, pair in enumerate(self.texts)}

    def add(self, where: str, row: int) -> tuple[int, int]:
        """Keep a text; returns the number of the texts around its gap, and what stands in the gap (-1: nothing)."""
        before, digits, after = _split(where, str(row))
        pair = (before, after)
        at = self._known.get(pair)
        if at is None:
            at = self._known[pair] = len(self.texts)
            self.texts.append(pair)
        return at, int(digits) if digits else NONE

    def text(self, at: int, number: int) -> str:
        """The text again."""
        before, after = self.texts[at]
        return before + after if number == NONE else f"{before}{number}{after}"


def _split(where: str, row: str) -> tuple[str, str, str]:
    """Split a text around the number of its row, else around the last number in it."""
    before, digits, after = where.rpartition(row)
    if digits and row.isdecimal() and not before[-1:].isdecimal() and not after[:1].isdecimal() and len(row) < 19:
        return before, digits, after
    found = _NUMBER.search(where)
    return (where, "", "") if found is None else (where[: found.start()], found[0], where[found.end() :])
