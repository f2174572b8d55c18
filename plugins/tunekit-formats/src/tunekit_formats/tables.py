"""A table: rows by column from one place, wherever that is, and a fingerprint of its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Record = tuple[str, Mapping[str, Any]]
"""Where a row stands (`alpaca.json, row 17`) and its values by column."""


@dataclass(frozen=True)
class Table:
    """An opened source before columns are renamed and rows are counted.

    `fixed` tells that every row has all columns, as in CSV and Parquet; rows of JSON may leave some out.
    """

    columns: tuple[str, ...]
    read: Callable[[], Iterator[Record]]
    fingerprint: str
    fixed: bool
