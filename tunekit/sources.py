"""From data sources to examples: a reader opens them, a format converts them, every row is accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from .calls import Calls
from .errors import DataError, Problem
from .values import BadRow, Example, Examples, PlannedPlugin, Rows, Source

SHOWN = 20
"""How many bad rows an error names; the rest are counted."""


def read_examples(calls: Calls, sources: Sequence[Source], limit: int | None = None) -> Examples:
    """Read all sources, or the first `limit` rows of each, into one set of examples.

    Raises DataError: no data, columns that no format knows, and rows that cannot be used where the source says
    `bad_rows: error`; all bad rows of all sources at once.
    """
    examples: list[Example] = []
    bad: list[BadRow] = []
    problems: list[Problem] = []
    formats: list[str] = []
    fingerprints: dict[str, str] = {}
    for source in sources:
        rows = calls.own("tunekit_read_data", source=source)
        planned, results = _recognise(calls, rows)
        formats.append(planned.name)
        fingerprints[source.name] = rows.fingerprint
        for result in islice(results, limit):
            if isinstance(result, Example):
                examples.append(replace(result, optional=True) if source.bad_rows == "drop" else result)
                continue
            bad.append(result)
            if source.bad_rows == "error":
                problems.append(Problem(result.where, result.reason, result.remedy))
    if problems:
        raise DataError([*problems[:SHOWN], *_rest(problems)])
    if not examples:
        raise DataError([Problem(_names(sources), "holds no example to train on", "give at least one row")])
    return Examples(tuple(examples), len(examples) + len(bad), tuple(bad), tuple(dict.fromkeys(formats)), fingerprints)


def count_rows(calls: Calls, sources: Sequence[Source], most: int) -> int | None:
    """Count the rows of all sources; None where there are more than `most`."""
    total = 0
    for source in sources:
        rows = calls.own("tunekit_read_data", source=source)
        total += sum(1 for _ in islice(rows.read(), most + 1))
        if total > most:
            return None
    return total


def _recognise(calls: Calls, rows: Rows) -> tuple[PlannedPlugin, Iterator[Example | BadRow]]:
    """Find the one format that takes these rows: the one the source names, else the one that knows the columns."""
    formats = calls.answering("tunekit_format_data")
    wanted = rows.source.format
    if wanted is not None:
        formats = tuple(planned for planned in formats if planned.name == wanted)
    found = [
        (planned, results)
        for planned in formats
        if (results := calls.one(planned, "tunekit_format_data", rows=rows)) is not None
    ]
    if len(found) == 1:
        return found[0]
    columns = ", ".join(rows.columns) or "none"
    names = [planned.name for planned, _ in found] or [planned.name for planned in formats]
    key = rows.source.name if rows.source.path is None else f"{rows.source.key} ({rows.source.name})"
    if found:
        raise DataError(
            [Problem(key, f"its columns ({columns}) are known to {' and '.join(names)}", "name one: `format:`")]
        )
    if wanted is not None:
        raise DataError(
            [Problem(key, f"has the columns {columns}, which format {wanted} does not know",
                     "rename them with `columns:`, or name another format")]
        )  # fmt: skip
    raise DataError(
        [Problem(key, f"has the columns {columns}, which no format knows ({', '.join(names)} were asked)",
                 "rename them with `columns:`, or name the format with `format:`")]
    )  # fmt: skip


def _rest(problems: Sequence[Problem]) -> list[Problem]:
    more = len(problems) - SHOWN
    remedy = "mend the rows, or count and drop them with `bad_rows: drop`"
    return [Problem("", f"and {more} more" if more > 0 else f"{len(problems)} rows in all cannot be used", remedy)]


def _names(sources: Sequence[Source]) -> str:
    return ", ".join(source.name for source in sources) or "data"
