"""Preference rows: a prompt, and two ways it goes on, of which one was chosen.

The prompt has a column of its own, or is what two whole conversations begin with: their longest common beginning. They
may part only where the assistant speaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

from tunekit.values import BadRow, Example, Message, Row, Rows

from .answers import is_conversation, read_answer, read_prompt
from .checks import Unusable, column, convert, shown
from .images import Pictures
from .marks import PAIR
from .setting import refuse_unread_media, tools_of, with_system
from .shapes import Shape
from .styles import Style

Turns = tuple[Message, ...]

SCORES = (
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
"""Columns whose difference is the margin."""

_NO_PROMPT = (
    "say which column it is, as in `columns: {prompt: question}`, or write chosen and rejected as whole conversations"
)


def read(rows: Rows, shape: Shape) -> Iterator[Example | BadRow]:
    """Make one preference of each row, or say why not."""
    folder, prompt, style = rows.source.folder, shape.column, shape.style

    def make(row: Row) -> Example:
        refuse_unread_media(row)
        messages, chosen, rejected = _pair(row, prompt, style, Pictures.of(row, folder))
        lists = [row.values.get(name) for name in (prompt, "chosen") if name is not None]
        return Example(
            row.number,
            row.where,
            with_system(row, messages),
            chosen=chosen,
            rejected=rejected,
            margin=_margin(row.values),
            tools=tools_of(row, *lists),
        )

    return convert(rows, make)


def _pair(row: Row, name: str | None, style: Style, pictures: Pictures) -> tuple[Turns, Turns, Turns]:
    """The prompt, and how the chosen and the rejected conversation go on from it."""
    prompt = () if name is None else read_prompt(row, name, style, pictures)
    whole = [is_conversation(column(row, each), style, name is not None) for each in PAIR]
    chosen, rejected = (_continuation(row, each, style, pictures.branch(anew=all(whole))) for each in PAIR)
    if chosen == rejected:
        raise Unusable("chosen and rejected are the same", "leave the row out: there is nothing to prefer")
    if any(whole) and not all(whole):
        raise Unusable("of chosen and rejected one is an answer, one a whole conversation", "write both alike")
    if all(whole):
        prompt, chosen, rejected = _part(prompt, chosen, rejected)
    _require_answers(chosen, rejected)
    if not prompt:
        raise Unusable("there is no prompt", _NO_PROMPT)
    return prompt, chosen, rejected


def _continuation(row: Row, name: str, style: Style, pictures: Pictures) -> Turns:
    turns = read_answer(row, name, style, pictures)
    pictures.finish()
    return turns


def _part(told: Turns, chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Part two whole conversations where they part; a prompt that is told as well must be what leads there."""
    count = sum(1 for _ in takewhile(lambda turns: turns[0] == turns[1], zip(chosen, rejected, strict=False)))
    prompt = chosen[:count]
    if told and prompt[-len(told) :] != told:
        raise Unusable(
            "the prompt is not what chosen and rejected begin with", "remove the prompt, or write answers alone"
        )
    return prompt, chosen[count:], rejected[count:]


def _require_answers(chosen: Turns, rejected: Turns) -> None:
    if not chosen or not rejected:
        raise Unusable("one of chosen and rejected holds no answer of its own", "write both to the end of an answer")
    other = next((turns[0].role for turns in (chosen, rejected) if turns[0].role != "assistant"), None)
    if other is not None:
        remedy = f"leave the row out (found a turn of the {other})"
        raise Unusable("chosen and rejected do not part with an answer of the assistant", remedy)


def _margin(values: Mapping[str, Any]) -> float | None:
    """How much better the chosen answer is: column `margin`, or the difference of two scores."""
    if values.get("margin") is not None:
        return _number(values["margin"], "margin")
    for better, worse in SCORES:
        if values.get(better) is not None and values.get(worse) is not None:
            return _number(_number(values[better], better) - _number(values[worse], worse), "margin")
    return None


def _number(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable(f"column {name} is no finite number", f"write a number or nothing (found: {shown(value)})")
    return number
