"""What a reader has to satisfy: every row in order, as often as asked, with a fingerprint of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ..errors import DataError
from ..values import BadRow, Row, Rows, Source
from .plugins import PluginSuite


class ReaderSuite(PluginSuite):
    """Say in `source` how rows are put where the reader finds them."""

    rows: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"instruction": "Say one.", "output": "one"},
        {"instruction": "Say \u4e8c.", "output": "\u4e8c"},
        {"instruction": "Say three,\nfour", "output": 'five "six"'},
    )

    def source(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Source:
        """Write rows into `folder` in a form the reader knows, and return the source that names it."""
        pytest.fail(f"{type(self).__name__} has to say how rows are written: define source()")

    def read(self, source: Source) -> Rows:
        """Open a source."""
        rows: Rows = self.calls().own("tunekit_read_data", source=source)
        return rows

    def read_rows(self, source: Source) -> list[Row]:
        """Open a source and read it once; every row has to be readable."""
        read = list(self.read(source).read())
        bad = [row for row in read if isinstance(row, BadRow)]
        assert not bad, "good rows came as bad ones"
        return [row for row in read if isinstance(row, Row)]

    def test_every_row_is_read_in_order(self, tmp_path: Path) -> None:
        """With its values unchanged and its number from 1."""
        read = self.read_rows(self.source(tmp_path, self.rows))
        assert [dict(row.values) for row in read] == [dict(row) for row in self.rows]
        assert [row.number for row in read] == [1, 2, 3]
        assert all(str(row.number) in row.where for row in read)

    def test_columns_are_those_of_the_first_row(self, tmp_path: Path) -> None:
        """Formats decide by them."""
        assert self.read(self.source(tmp_path, self.rows)).columns == tuple(self.rows[0])

    def test_reading_again_starts_again(self, tmp_path: Path) -> None:
        """Each `read()` is a fresh pass."""
        rows = self.read(self.source(tmp_path, self.rows))
        assert list(rows.read()) == list(rows.read())

    def test_a_limit_keeps_the_first_rows(self, tmp_path: Path) -> None:
        """As the source says."""
        source = replace(self.source(tmp_path, self.rows), limit=2)
        assert [dict(row.values) for row in self.read_rows(source)] == [dict(row) for row in self.rows[:2]]

    def test_columns_have_the_names_that_the_source_gives_them(self, tmp_path: Path) -> None:
        """`columns` is {new name: name in the data}; both what is announced and what is read."""
        source = replace(self.source(tmp_path, self.rows), columns={"answer": "output"})
        assert set(self.read(source).columns) == {"instruction", "answer"}
        assert [row.values["answer"] for row in self.read_rows(source)] == [row["output"] for row in self.rows]
        assert all("output" not in row.values for row in self.read_rows(source))

    def test_two_passes_at_once_do_not_disturb_each_other(self, tmp_path: Path) -> None:
        """Several sources may be mixed, and one may be read twice."""
        rows = self.read(self.source(tmp_path, self.rows))
        expected = list(rows.read())
        pairs = list(zip(rows.read(), rows.read(), strict=True))
        assert pairs == [(row, row) for row in expected]

    def test_the_fingerprint_changes_with_the_data_and_only_then(self, tmp_path: Path) -> None:
        """The record tells by it whether two runs saw the same data."""
        folders = [tmp_path / name for name in ("one", "same", "other")]
        for folder in folders:
            folder.mkdir()
        other = [*self.rows[:-1], {**self.rows[-1], "output": "seven"}]
        one, same, changed = (
            self.read(self.source(folder, rows)).fingerprint
            for folder, rows in zip(folders, (self.rows, self.rows, other), strict=True)
        )
        assert one == same
        assert one != changed

    def test_a_source_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        """The message says what was looked for."""
        missing = replace(self.source(tmp_path, self.rows), path=str(tmp_path / "missing.jsonl"), rows=None)
        with pytest.raises(DataError, match="missing"):
            list(self.read(missing).read())
