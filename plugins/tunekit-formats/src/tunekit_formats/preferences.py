"""Rows that say which answers are good and which are bad are refused: plain training would learn both alike."""

from __future__ import annotations

from tunekit.values import Row

from .problems import Unusable

_PAIR = ("chosen", "rejected")
_LABELS = ("label", "kto_tag")


def refuse_preferences(row: Row) -> None:
    """Raise Unusable where a row holds a chosen and a rejected answer, or a label that calls its answer good or bad."""
    pair = [name for name in _PAIR if row.values.get(name) is not None]
    if pair:
        raise Unusable(
            f"this is preference data (columns {' and '.join(pair)}), which this format does not read",
            "use it in a stage that trains on preferences, or make rows of the chosen answer alone",
        )
    label = next((name for name in _LABELS if isinstance(row.values.get(name), bool)), None)
    if label is not None:
        raise Unusable(
            f"column {label} calls the answer good or bad, and this format would train on both alike",
            f"keep the good rows and remove the column {label}, or use a stage that trains on such labels",
        )
