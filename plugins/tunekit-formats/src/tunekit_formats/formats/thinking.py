"""Reasoning traces: an answer that begins with what the assistant thinks, between `<think>` and `</think>`."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"
_NEWLINES = "\r\n"


def split(answer: str) -> tuple[str | None, str]:
    """Part what is thought from what is said; newlines around the two tags belong to neither.

    None where the answer does not begin with the tag, or the tag is never closed: then all of it is said.
    """
    if not answer.lstrip(_NEWLINES).startswith(OPEN):
        return None, answer
    thought, closed, said = answer.lstrip(_NEWLINES)[len(OPEN) :].partition(CLOSE)
    if not closed:
        return None, answer
    return thought.strip(_NEWLINES), said.lstrip(_NEWLINES)
