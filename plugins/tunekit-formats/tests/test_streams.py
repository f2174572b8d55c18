"""Reading at constant memory, fingerprints worked out once, and properties that hold for any text and any bytes."""

from __future__ import annotations

import csv
import gzip
import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekit.errors import DataError
from tunekit.values import BadRow, Row, Source
from tunekit_formats.reading import blobs, json_lists, open_source

ROW = {"instruction": "say something", "output": "word " * 200, "n": "\u4f60\u597d"}


def _values(path: Path, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in open_source(Source(path=str(path), **options)).read() if isinstance(row, Row)]


# Memory


def _write_many(path: Path, rows: int) -> None:
    line = json.dumps(ROW)
    if path.name == "a.json":
        with path.open("w", encoding="utf-8") as file:
            file.write("[" + f"{line},\n" * (rows - 1) + line + "]")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([list(ROW), *([list(ROW.values())] * rows)])
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(f"{line}\n".encode() * rows, compresslevel=1))
    elif path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist([ROW] * rows), path, row_group_size=1000)
    else:
        path.write_text(f"{line}\n" * rows, encoding="utf-8")


def _peak(path: Path) -> int:
    """Bytes that Python holds at most while a file is opened and read."""
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_source(Source(path=str(path))).read()) > 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt", "a.jsonl.gz", "a.parquet"])
def test_the_memory_that_reading_takes_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    peaks = []
    for rows in (4_000, 16_000):  # 4 and 17 MB
        _write_many(tmp_path / name, rows)
        peaks.append(_peak(tmp_path / name))
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 6_000_000  # a few buffers of 256 KiB, 1 MiB while hashing, and 1,024 rows of Parquet


# Fingerprints


def test_an_unchanged_file_is_read_once_for_its_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n', encoding="utf-8")
    read: list[str] = []
    plain = blobs.sha256
    monkeypatch.setattr(blobs, "sha256", lambda stream: read.append("") or plain(stream))
    monkeypatch.setattr(blobs, "SETTLED", 0.0)
    prints = {open_source(Source(path=str(path))).fingerprint for _ in range(3)}
    assert (len(prints), len(read)) == (1, 1)
    path.write_text('{"a": 2}\n', encoding="utf-8")
    os.utime(path, (time.time() + 5,) * 2)
    prints.add(open_source(Source(path=str(path))).fingerprint)
    assert (len(prints), len(read)) == (2, 2)


def test_a_file_that_was_written_just_now_is_read_anew_for_its_fingerprint(tmp_path: Path) -> None:
    path, prints = tmp_path / "a.jsonl", []
    for number in range(5):  # the time stamp of a file may not tell two writes apart
        path.write_text(f'{{"a": {number}}}\n', encoding="utf-8")
        prints.append(open_source(Source(path=str(path))).fingerprint)
    assert len(set(prints)) == 5


# Properties

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
ROWS = st.lists(st.lists(TEXT, min_size=2, max_size=2), min_size=1, max_size=6)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    rows=st.lists(st.dictionaries(TEXT, VALUES, max_size=3), min_size=1, max_size=4),
    size=st.integers(1, 40),
    indent=st.none() | st.integers(0, 30),
    plain=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_json_list_is_read_the_same_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], size: int, indent: int | None, plain: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=plain), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "BUFFER", size)
        assert _values(path) == rows


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


@given(
    content=st.text(alphabet='[]{}",:\\u\n a1-.eE\u00e9', max_size=40).map(lambda text: f"[{text}".encode())
    | st.lists(st.dictionaries(TEXT, VALUES, max_size=2), max_size=3).map(lambda rows: json.dumps(rows).encode()[:-3]),
    size=st.integers(1, 40),
)
@settings(max_examples=300, deadline=None)
def test_a_json_list_is_refused_in_pieces_if_and_only_if_json_refuses_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, size: int
) -> None:
    """And in the line and column that `json` names, where it is malformed inside an item."""
    path = tmp_path_factory.getbasetemp() / "junk.json"
    path.write_bytes(content)
    expected: Any
    try:
        expected = json.loads(content, object_pairs_hook=_unique)
    except ValueError as error:
        expected = error
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "BUFFER", size)
        try:
            read: Any = list(open_source(Source(path=str(path), bad_rows="drop")).read())
        except DataError as error:
            read = error
    if isinstance(expected, list) and any(isinstance(item, dict) for item in expected):
        good = [dict(row.values) for row in read if isinstance(row, Row)]
        assert (good, len(read)) == ([item for item in expected if isinstance(item, dict)], len(expected))
        return
    assert isinstance(read, DataError)
    if isinstance(expected, json.JSONDecodeError) and "is not JSON: Expecting" in str(read):
        assert f"line {expected.lineno}" in str(read)
        assert f"(column {expected.colno})" in str(read)


@given(names=st.lists(TEXT.filter(bool), min_size=2, max_size=2, unique=True), rows=ROWS, mark=st.sampled_from("ct"))
@settings(max_examples=150, deadline=None)
def test_whatever_csv_can_hold_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], rows: list[list[str]], mark: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{mark}sv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="," if mark == "c" else "\t").writerows([names, *rows])
    assert _values(path) == [dict(zip(names, row, strict=True)) for row in rows]


@given(
    content=st.binary(max_size=80)
    | st.text(alphabet='[]{}",:\n\r\t\0 a1\\\u00e9', max_size=60).map(str.encode)
    | st.binary(max_size=80).map(gzip.compress)
)
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize(
    "suffix",
    [".json", ".jsonl", ".csv", ".tsv", ".txt", ".json.gz", ".jsonl.xz", ".csv.bz2", ".zip", ".tar", ".tgz", ".arrow"],
)
@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_any_bytes_give_rows_bad_rows_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, bad_rows: Any, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    try:
        read = list(open_source(Source(path=str(path), bad_rows=bad_rows)).read())
    except DataError:
        return
    numbers = [row.row if isinstance(row, BadRow) else row.number for row in read]
    assert numbers == list(range(1, len(read) + 1))
    assert bad_rows == "drop" or all(isinstance(row, Row) for row in read)
