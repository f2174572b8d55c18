"""Text rows: each is a document, trained as it stands."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.values import BadRow, Example, Row, Rows

from .checks import convert, text_column


def read(rows: Rows) -> Iterator[Example | BadRow]:
    """Make one document of each row, or say why not."""
    return convert(rows, _document)


def _document(row: Row) -> Example:
    return Example(row.number, row.where, text=text_column(row, "text"))
