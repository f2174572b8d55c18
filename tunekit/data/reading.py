"""From data sources to examples: a reader opens them, a format converts them, every row is accounted for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from typing import Any

from ..calls import Calls
from ..errors import DataError, Problem
from ..values import Account, BadRow, Example, Examples, Mixing, PlannedPlugin, Row, Rows, Source
from .code import code_fingerprint
from .mixing import Interleaved

REMEMBERED = 1_000_000
"""Rows that a later row is compared with to find duplicates; what comes after them is not compared."""


def open_examples(
    calls: Calls, sources: Sequence[Source], mixing: Mixing | None = None, limit: int | None = None
) -> Examples:
    """Open all sources, or the first `limit` rows of each. Nothing is read yet but the head of each.

    Raises DataError: a source that cannot be opened, columns that no format knows. Rows that cannot be used are noted
    in the account of each pass.
    """
    mixing = mixing or Mixing()
    opened: list[_Opened] = []
    problems: list[Problem] = []
    for source in sources:
        try:
            opened.append(_open(calls, source, limit))
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError(problems)
    if not opened:
        raise DataError([Problem("data", "names no source", "name some: `data: alpaca.json`")])
    return Examples(
        lambda account: _mixed(opened, mixing, account),
        _fingerprint(opened, mixing, limit),
        mixing,
        names=tuple(each.source.name for each in opened),
    )


def count_rows(calls: Calls, sources: Sequence[Source], most: int) -> int | None:
    """Count the rows of all sources; None where there are more than `most`."""
    total = 0
    for source in sources:
        rows = calls.own("tunekit_read_data", source=source)
        total += sum(1 for _ in islice(rows.read(), most + 1))
        if total > most:
            return None
    return total


@dataclass(frozen=True)
class _Opened:
    """A source with the format that takes its rows."""

    source: Source
    rows: Rows
    reader: PlannedPlugin
    format: PlannedPlugin
    convert: Callable[[Rows], Iterator[Example | BadRow]]

    def examples(self, account: Account, seen: _Seen) -> Iterator[Example]:
        """Read it once; rows that are no example are noted, and those that say what was `seen` already."""
        noted = account.source(self.source.name)
        noted.format, noted.fingerprint = self.format.name, self.rows.fingerprint
        optional = self.source.bad_rows == "drop"

        def leave_out(bad: BadRow) -> None:
            noted.rows += 1
            account.leave_out(self.source.name, bad.where, bad.reason, bad.remedy, optional)

        taken: dict[int, Mapping[str, Any]] = {}
        for result in self.convert(_readable(self.rows, leave_out, taken)):
            columns = taken.pop(result.row, {})
            if isinstance(result, BadRow):
                leave_out(result)
                continue
            noted.rows += 1
            if seen.before(result):
                noted.duplicates.add(result.where)
            yield replace(result, source=self.source.name, optional=optional, columns=columns)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what its examples are.

        Every option of a source counts. Its rows, and what lies at its path, do by their fingerprint: a run that is
        resumed may name the path otherwise.
        """
        options = {each.name: getattr(self.source, each.name) for each in fields(Source)}
        return {
            "fingerprint": self.rows.fingerprint,
            "plugins": [_identity(each) for each in (self.reader, self.format)],
            "source": {**options, "rows": None, "key": None, "path": None},
        }


def _open(calls: Calls, source: Source, limit: int | None) -> _Opened:
    if limit is not None:
        source = replace(source, limit=min(limit, source.limit or limit))
    reader = calls.owner("tunekit_read_data")
    rows = calls.own("tunekit_read_data", source=source)
    assert reader is not None, "the call has found it"
    planned = _recognise(calls, _readable(rows, lambda bad: None))

    def convert(readable: Rows) -> Iterator[Example | BadRow]:
        results: Iterator[Example | BadRow] = calls.one(planned, "tunekit_format_data", rows=readable)
        return results

    return _Opened(source, rows, reader, planned, convert)


def _readable(rows: Rows, note: Callable[[BadRow], None], taken: dict[int, Mapping[str, Any]] | None = None) -> Rows:
    """The rows that could be read at all, for formats; the others are noted. `taken` keeps their values by number."""

    def read() -> Iterator[Row | BadRow]:
        for row in rows.read():
            if isinstance(row, BadRow):
                note(row)
            else:
                if taken is not None:
                    taken[row.number] = row.values
                yield row

    return replace(rows, read=read)


def _mixed(opened: Sequence[_Opened], mixing: Mixing, account: Account) -> Iterator[Example]:
    seen = _Seen()
    if mixing.order == "interleave" and len(opened) > 1:

        def start(source: _Opened, again: bool) -> Iterator[Example]:
            # A source that starts again is not counted again: its later passes go to an account that nobody reads.
            if not again:
                return source.examples(account, seen)
            return (replace(example, again=True) for example in source.examples(Account(), _Seen()))

        starts = [partial(start, each) for each in opened]
        yield from Interleaved(starts, [each.source.weight for each in opened], mixing.until)
        return
    for each in opened:
        yield from each.examples(account, seen)


def _fingerprint(opened: Sequence[_Opened], mixing: Mixing, limit: int | None) -> str:
    """A key for what is made of these examples. None of a sample: it is not worth keeping."""
    if limit is not None:
        return ""
    identity = {"sources": [each.identity for each in opened], "mixing": [mixing.order, mixing.until]}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=dict).encode()).hexdigest()


def _identity(planned: PlannedPlugin) -> list[Any]:
    code = code_fingerprint(type(planned.plugin).__module__)
    options = planned.plugin.config.model_dump(mode="json")
    return [planned.name, planned.distribution, planned.version, code, options]


class _Seen:
    """What examples have said so far."""

    def __init__(self) -> None:
        self.said: set[int] = set()

    def before(self, example: Example) -> bool:
        """Whether an example before said the same, as far as they are remembered."""
        if len(self.said) == REMEMBERED:
            return False
        said, count = _said(example), len(self.said)
        self.said.add(said)
        return len(self.said) == count


def _said(example: Example) -> int:
    turns = (*example.messages, *example.chosen, *example.rejected)
    told = ((turn.role, turn.content, turn.thinking, repr(turn.tool_calls or "")) for turn in turns)
    return hash((example.text, example.label, repr(example.tools or ""), *told))


def _recognise(calls: Calls, rows: Rows) -> PlannedPlugin:
    """Find the one format that takes these rows: the one the source names, else the one that knows the columns."""
    formats = calls.answering("tunekit_format_data")
    wanted = rows.source.format
    if wanted is not None:
        formats = tuple(planned for planned in formats if planned.name == wanted)
    found = [planned for planned in formats if calls.one(planned, "tunekit_format_data", rows=rows) is not None]
    if len(found) == 1:
        return found[0]
    columns = ", ".join(rows.columns) or "none"
    names = [planned.name for planned in found or formats]
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
