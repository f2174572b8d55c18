"""Rows given in Python: whatever can be read again, a function that starts afresh, and a data set at hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tunekit.errors import DataError
from tunekit.testing import ReaderSuite
from tunekit.values import BadRow, Row, Source
from tunekit_formats import Files
from tunekit_formats.reading import open_source

ROWS = [{"text": f"row {number}"} for number in range(5)]


def _values(rows: Any, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in open_source(Source(rows=rows, **options)).read() if isinstance(row, Row)]


def _print(rows: Any, **options: Any) -> str:
    return open_source(Source(rows=rows, **options)).fingerprint


def generate() -> Iterator[dict[str, Any]]:
    yield from ROWS


class Again:
    """Rows that can be iterated again and again, and whose number nobody knows."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return generate()


@pytest.mark.parametrize("rows", [ROWS, tuple(ROWS), generate, lambda: ROWS, Again(), [*map(MappingProxyType, ROWS)]])
def test_rows_of_every_sort_are_read_again_and_again(rows: Any) -> None:
    opened = open_source(Source(rows=rows, key="data"))
    for _ in range(2):
        read = list(opened.read())
        assert [dict(row.values) for row in read if isinstance(row, Row)] == ROWS
    assert read[4].where == "data (rows given in Python), row 5"
    assert opened.columns == ("text",)


@pytest.mark.parametrize("rows", [generate(), iter(ROWS), map(dict, ROWS)])
def test_an_iterator_is_refused_with_the_way_out(rows: Any) -> None:
    with pytest.raises(DataError, match=r"which can be read only once; .* give the function that makes it"):
        open_source(Source(rows=rows))


def test_a_function_that_gives_one_iterator_again_and_again_is_refused() -> None:
    once = generate()
    with pytest.raises(DataError, match="is a generator, which can be read only once"):
        open_source(Source(rows=lambda: once))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": ROWS}, "is one dict, expected rows; give a list of rows"),
        (5, "is a number, expected rows"),
        (lambda: 5, "the function gives a number, expected rows"),
        (lambda: None, "the function gives null, expected rows"),
        (["text"], r"row 1: is text, expected values by column; .*frame\.to_dict\('records'\)"),
        ([{5: "a"}], r"row 1: has a number \(5\) as the name of a column"),
        (lambda: iter(()), "holds no rows"),
    ],
)
def test_what_are_no_rows_is_refused(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(Source(rows=rows))


def test_a_row_that_is_none_is_noted_where_the_source_says_so() -> None:
    read = list(open_source(Source(rows=[ROWS[0], "no", ROWS[1]], bad_rows="drop")).read())
    assert [type(row) for row in read] == [Row, BadRow, Row]


def test_rows_that_never_end_are_read_as_far_as_asked_for() -> None:
    def endless() -> Iterator[dict[str, Any]]:
        return ({"text": str(number)} for number in count())

    assert len(_values(endless, limit=20_000)) == 20_000


# Fingerprints


def test_the_fingerprint_is_that_of_the_rows_however_they_are_given() -> None:
    assert _print(ROWS) == _print(generate) == _print(Again()) != _print(ROWS[:4])


def test_rows_that_cannot_be_written_as_json_have_a_fingerprint_of_what_they_say() -> None:
    class Cell:
        def __init__(self, value: int) -> None:
            self.value = value

        def __repr__(self) -> str:
            return f"Cell({self.value})"

    assert _print([{"a": Cell(1)}]) == _print([{"a": Cell(1)}]) != _print([{"a": Cell(2)}])
    assert _print([{"a": {(1, 2): "b"}}]) != _print([{"a": {(1, 3): "b"}}])


def test_rows_too_many_to_look_at_have_a_fingerprint_that_no_other_function_has() -> None:
    def many(last: str) -> Any:
        return lambda: ({"text": "a" if number < 20_000 else last} for number in range(20_001))

    one, other = many("b"), many("c")
    assert _print(one) == _print(one) != _print(other)
    assert _print(one, limit=50) == _print(other, limit=50)


# Data sets of `datasets`


def test_a_data_set_is_read_as_it_is_stored() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    assert _values(data) == ROWS
    assert _values(data.select([3, 1])) == [ROWS[3], ROWS[1]]
    assert _print(data) == _print(datasets.Dataset.from_list(ROWS)) != _print(data.select([3, 1]))


def test_a_data_set_with_a_transform_is_read_through_it() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.set_transform(lambda batch: {"text": [text.upper() for text in batch["text"]]})
    assert _values(data)[0] == {"text": "ROW 0"}
    assert _print(data) != _print(datasets.Dataset.from_list(ROWS))


def test_a_data_set_that_streams_is_read_again_and_again() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    assert (_values(data), _values(data)) == (ROWS, ROWS)


def test_a_data_set_of_several_splits_is_refused() -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"is one DatasetDict, expected rows; .* of several splits, give one"):
        _values(datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)))


def test_rows_in_python_are_read_without_importing_datasets() -> None:
    script = (
        "import sys; from tunekit.values import Source; from tunekit_formats.reading import open_source;"
        "assert len(list(open_source(Source(rows=[{'a': 1}])).read())) == 1;"
        "assert not {'datasets', 'pyarrow', 'fsspec'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# Parts of a split


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train[:2]", [1, 2]),
        ("train[3:]", [4, 5]),
        ("train[1:3]", [2, 3]),
        ("train[-2:]", [4, 5]),
        ("train[:-3]", [1, 2]),
        ("train[:40%]", [1, 2]),
        ("train[50%:90%]", [3, 4]),
        ("train[-20%:]", [5]),
        ("train[:]", [1, 2, 3, 4, 5]),
        ("train[2:99]", [3, 4, 5]),
    ],
)
def test_a_part_of_a_split_keeps_the_numbers_of_its_rows(split: str, numbers: list[int]) -> None:
    rows = [row for row in open_source(Source(rows=ROWS, split=split)).read() if isinstance(row, Row)]
    assert [row.number for row in rows] == numbers
    datasets = pytest.importorskip("datasets")
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({"train": 5})
    assert [range(5)[part.from_ : part.to] for part in parts] == [range(numbers[0] - 1, numbers[-1])]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train[:2", r"data\.split: 'train\[:2' is no split; write it as train or train\[:100\]"),
        ("train+test", "is no split"),
        ("test[:2]", "has no split 'test'"),
        ("train[9:]", r"'train\[9:\]' of .* holds no rows; take more rows"),
        ("train[:0]", "holds no rows"),
    ],
)
def test_a_part_that_means_nothing_is_refused(split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(Source(rows=ROWS, split=split))


@pytest.mark.parametrize("option", ["subset", "revision"])
def test_options_of_hub_data_sets_are_refused_elsewhere(option: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}', encoding="utf-8")
    for where in ({"rows": ROWS}, {"path": str(tmp_path)}, {"path": str(tmp_path / "a.jsonl")}):
        with pytest.raises(DataError, match=rf"data\.{option}: .* is no data set on a hub"):
            open_source(Source(**where, **{option: "main"}))


class TestFunctions(ReaderSuite):
    plugin = Files()

    def source(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Source:
        return Source(rows=lambda: (dict(row) for row in rows))


class TestDataSets(ReaderSuite):
    plugin = Files()

    def source(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Source:
        datasets = pytest.importorskip("datasets")
        return Source(rows=datasets.Dataset.from_list([dict(row) for row in rows]))
