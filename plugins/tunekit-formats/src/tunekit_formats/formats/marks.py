"""Answers called good or bad: rows that say so belong to a format of their own, never to plain training."""

from __future__ import annotations

from typing import Any

from tunekit.values import Row

from .checks import Unusable

PAIR = ("chosen", "rejected")
LABELS = ("kto_tag", "label")
_GOOD, _BAD = frozenset({"true", "1"}), frozenset({"false", "0"})


def as_label(value: Any) -> bool | None:
    """True or false, also written as 1 and 0 or as text; None where it is neither."""
    if isinstance(value, str):
        written = value.strip().lower()
        return True if written in _GOOD else False if written in _BAD else None
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    return None


def refuse_marked(row: Row) -> None:
    """Raise Unusable where a row of plain training holds chosen and rejected answers, or calls its own good or bad.

    A number under `label` may be a class as well: whoever names a plain format means that.
    """
    pair = [name for name in PAIR if row.values.get(name) is not None]
    if pair:
        raise Unusable(
            f"this is preference data (columns {' and '.join(pair)}), which plain training would learn alike",
            "name the format preference, or make rows of the chosen answer alone",
        )
    tagged = row.values.get("kto_tag") is not None
    if tagged or isinstance(row.values.get("label"), bool):
        name = "kto_tag" if tagged else "label"
        raise Unusable(
            f"column {name} calls the answer good or bad, and plain training would learn both alike",
            f"name the format labelled, or keep the good rows and remove the column {name}",
        )
