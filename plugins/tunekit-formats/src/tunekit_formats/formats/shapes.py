"""Which format rows are in, told by their columns; at most one ever answers.

The shape that most of the first rows have is that of the source, so that a few bad rows do not hide it. A list of turns
is called `messages` or `conversations`; whether its turns are `role` and `content` (openai) or `from` and `value`
(sharegpt) is read from the first turn that tells, and where none does the name of the column decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

from tunekit.values import Rows

from ..problems import data_error, listed, place
from .checks import readable
from .marks import LABELS, PAIR, as_label
from .styles import OPENAI, SHAREGPT, Style, tagged

Format = Literal["alpaca", "sharegpt", "openai", "text", "preference", "labelled", "prompt"]
Fit = tuple[Format | Literal["several", "turns"], str | None]
"""A format, `turns` where only the turns can tell which, or `several` that fit; and the column it begins in."""

PEEK = 100
"""Rows looked at to learn the shape."""

_TURNS = ("messages", "conversations")
_NEEDS: dict[Format, tuple[tuple[str, ...], ...]] = {
    "alpaca": (("instruction",), ("output",)),
    "sharegpt": (("conversations", "messages"),),
    "openai": (("messages", "conversations"),),
    "text": (("text",),),
    "preference": (("chosen",), ("rejected",)),
    "labelled": (("messages", "conversations", "prompt", "instruction"), LABELS),
    "prompt": (("prompt",),),
}
"""What each format cannot do without: one column of each group."""


@dataclass(frozen=True)
class Shape:
    """The column a row begins in (None where chosen and rejected hold the prompt), and how its turns are written."""

    column: str | None
    style: Style


def recognise(rows: Rows, name: Format) -> Shape | None:
    """Tell whether rows are of this format; None where they are not and the source names no format.

    Raises DataError where the source names this format but lacks a column for it, or gives tags that mean nothing.
    """
    head = [row.values for row in islice(readable(rows), PEEK)]
    if rows.source.format is not None:
        column = _named(rows, name, head)
    else:
        found, column = _commonest(head, rows.columns)
        if found == "turns":
            found = "openai" if _style(rows, head, column) is OPENAI else "sharegpt"
        if found != name:
            return None
    return _shape(rows, name, head, column)


def _shape(rows: Rows, name: Format, head: list[Mapping[str, Any]], column: str | None) -> Shape:
    base = {"openai": OPENAI, "sharegpt": SHAREGPT}.get(name) or _style(rows, head, column, *PAIR, "completion")
    if not rows.source.tags:
        return Shape(column, base)
    if name in ("alpaca", "text") or not any(_lists(head, (column, *PAIR, "completion"))):
        raise data_error(
            f"{rows.source.key}.tags",
            f"name keys and roles of turns, and the rows of {rows.source.name} hold no list of turns",
            "remove `tags`; columns are renamed with `columns`",
        )
    return Shape(column, tagged(base, rows.source))


def _named(rows: Rows, name: Format, head: list[Mapping[str, Any]]) -> str | None:
    """The column that rows of the format named begin in; its columns are taken on trust where they are there."""
    columns = tuple(dict.fromkeys(chain(rows.columns, chain.from_iterable(head))))
    missing = [" or ".join(group) for group in _NEEDS[name] if not set(group) & set(columns)]
    if missing:
        wanted = missing[0].split(" or ")[0]
        raise data_error(
            place(rows.source),
            f"format {name} needs the columns {listed(' or '.join(group) for group in _NEEDS[name])}; "
            f"not found: {listed(missing)}; found: {listed(map(str, columns))}",
            f"say which column it is, as in `columns: {{{wanted}: {next(iter(columns), 'name')}}}`, or name "
            "another format",
        )
    if name == "preference":
        return next(iter(_prompts(columns)), None)
    if name == "labelled" and (ways := _labelled(set(columns))):
        return ways[0]
    return next(column for column in _NEEDS[name][0] if column in columns)


def _commonest(head: list[Mapping[str, Any]], columns: Collection[str]) -> Fit | tuple[None, None]:
    """What most rows are, among those that are anything; the earlier of two that are as many."""
    labels = [name for name in LABELS if _judges(head, name)]
    fits = (_fit(set(each), labels) for each in (head or [dict.fromkeys(columns)]))
    counts = Counter(fit for fit in fits if fit is not None)
    return counts.most_common(1)[0][0] if counts else (None, None)


def _fit(columns: Set[str], labels: Iterable[str]) -> Fit | None:
    """What a row with these columns is; `labels` are those that call answers good or bad."""
    labelled = any(name in columns for name in labels)
    if columns >= set(PAIR):
        prompts = _prompts(columns)
        if labelled or ("prompt" not in columns and len(prompts) > 1):
            return "several", None
        return "preference", next(iter(prompts), None)
    ways = _labelled(columns) if labelled else _plain(columns)
    if len(ways) > 1:
        return "several", None
    if ways and labelled:
        return "labelled", ways[0]
    if ways:
        return ("alpaca" if ways[0] == "instruction" else "turns"), ways[0]
    if "text" in columns:
        return "text", "text"
    asks = "prompt" in columns and not labelled and not columns & {*PAIR, "completion"}
    return ("prompt", "prompt") if asks else None


def _plain(columns: Set[str]) -> list[str]:
    """The columns that conversations may begin in."""
    alpaca = ["instruction"] if columns >= {"instruction", "output"} else []
    return [*(name for name in _TURNS if name in columns), *alpaca]


def _labelled(columns: Set[str]) -> list[str]:
    """The columns that labelled conversations may begin in; the first goes before where a format is named."""
    prompt = ["prompt"] if columns >= {"prompt", "completion"} else []
    return [*prompt, *_plain(columns)]


def _prompts(columns: Collection[str]) -> list[str]:
    """The columns that the prompt of a preference may begin in; a column `prompt` goes before all others."""
    return [name for name in ("prompt", *_TURNS, "instruction") if name in columns]


def _judges(head: list[Mapping[str, Any]], name: str) -> bool:
    """Whether a column calls answers good or bad: most values are true or false, or all are 0 or 1.

    A `label` may be a class of another kind, a `kto_tag` may not.
    """
    values = [row[name] for row in head if row.get(name) is not None]
    labels = [value for value in values if as_label(value) is not None]
    clear = [value for value in labels if isinstance(value, bool) or str(value).strip().isalpha()]
    return bool(values) and (name == "kto_tag" or len(labels) == len(values) or 2 * len(clear) >= len(values))


def _style(rows: Rows, head: list[Mapping[str, Any]], *columns: str | None) -> Style:
    """How turns are written in these columns. Tags belong to ShareGPT's way, whatever names they give."""
    if rows.source.tags:
        return SHAREGPT
    openings = (turns[0] for turns in _lists(head, columns) if turns)
    keys = ({SHAREGPT.role, OPENAI.role}.intersection(turn) for turn in openings if isinstance(turn, Mapping))
    told = next((found for found in keys if len(found) == 1), {"from" if "conversations" in columns else "role"})
    return SHAREGPT if SHAREGPT.role in told else OPENAI


def _lists(head: Iterable[Mapping[str, Any]], columns: Iterable[str | None]) -> Iterator[Any]:
    """The lists of turns in these columns; a turn alone counts as a list."""
    wanted = tuple(columns)
    for value in (row.get(name) for row in head for name in wanted if name is not None):
        if isinstance(value, (list, tuple)):
            yield value
        elif isinstance(value, Mapping):
            yield (value,)
