"""Text rows: each is a document, trained as it stands."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.values import BadRow, Example, Rows

from .problems import Unusable, column


def convert(rows: Rows) -> Iterator[Example | BadRow]:
    """Make one document of each row, or say why not."""
    for row in rows.read():
        try:
            yield Example(row.number, row.where, text=column(row, "text"))
        except Unusable as unusable:
            yield unusable.at(row)
