"""Malformed rows: counted and left out where the source says `bad_rows: drop`, and the row after them is read."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import DataError
from tunekit.values import BadRow, Row, Source
from tunekit_formats.reading import open_source


def _read(path: Path, content: str | bytes, **options: Any) -> list[Row | BadRow]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(open_source(Source(path=str(path), bad_rows="drop", **options)).read())


def _short(row: Row | BadRow, path: Path) -> tuple[Any, ...]:
    """Number and values of a row; number, place and reason of a bad one."""
    if isinstance(row, Row):
        return row.number, dict(row.values)
    assert row.remedy
    return row.row, row.where.removeprefix(f"{path}, "), row.reason


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.jsonl",
            '{"a": 1}\n\n{"a": \n{"a": 2}\n',
            [(1, {"a": 1}), (2, "line 3", "is not JSON: Expecting value (column 6)"), (3, {"a": 2})],
        ),
        (
            "a.jsonl",
            b'{"a": "\xe9"}\n{"a": "b"}',
            [(1, "line 1", "is not UTF-8 (byte 0xe9)"), (2, {"a": "b"})],
        ),
        (
            "a.jsonl",
            '{"a": 1, "b": 2, "a": 3}\n{"a": 1}\n',
            [(1, "line 1", "names 'a' twice in one object"), (2, {"a": 1})],
        ),
        (
            "a.jsonl",
            '{"a": "x\0y"}\n"text"\n{"a": 1}\n',
            [
                (1, "line 1", "is not JSON: Invalid control character at (column 9)"),
                (2, "line 2", "is text, expected an object with columns"),
                (3, {"a": 1}),
            ],
        ),
        (
            "a.json",
            '[{"a": 1}, 7, null, {"a": 2}]',
            [
                (1, {"a": 1}),
                (2, "row 2", "is a number, expected an object with columns"),
                (3, "row 3", "is null, expected an object with columns"),
                (4, {"a": 2}),
            ],
        ),
        (
            "a.csv",
            "a,b\n1,2\n3\n4,5\n6,7,8\n",
            [
                (1, {"a": "1", "b": "2"}),
                (2, "line 3", "has 1 cells, the header has 2"),
                (3, {"a": "4", "b": "5"}),
                (4, "line 5", "has 3 cells, the header has 2"),
            ],
        ),
        (
            "a.csv",
            b'a,b\n"1\n\xff\n2",x\n3,4\n',
            [(1, "line 3", "is not UTF-8 (byte 0xff)"), (2, {"a": "3", "b": "4"})],
        ),
        (
            "a.csv",
            'a\n"x"y\n"1\n2"3\nz\n',
            [
                (1, "line 2", "is not CSV: ',' expected after '\"'"),
                (2, "line 3", "is not CSV: ',' expected after '\"' (the row runs on to line 4)"),
                (3, {"a": "z"}),
            ],
        ),
        (
            "a.txt",
            b"one\n\xff\n\nthree",
            [(1, {"text": "one"}), (2, "line 2", "is not UTF-8 (byte 0xff)"), (3, {"text": "three"})],
        ),
    ],
)
def test_a_malformed_row_is_noted_and_the_next_one_is_read(
    tmp_path: Path, name: str, content: str | bytes, expected: list[Any]
) -> None:
    path = tmp_path / name
    assert [_short(row, path) for row in _read(path, content)] == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"a": 1}, {"a": 2} {"a": 3}]', "a.json, line 1: is not JSON: expected a comma"),
        ("a.json", '[{"a": 1}, {"a": ', "a.json, line 1: is not JSON: Expecting value (column 18)"),
        ("a.json", b'[{"a": 1},\n {"a": "\xff"}]', "a.json, line 2: is not UTF-8"),
        ("a.json", '[{"a": 1},\n {"a": 1, "a": 2}]', "a.json, line 2: names 'a' twice in one object"),
        ("a.csv", 'a,b\n1,2\n"3,4\n5,6\n', "a.csv, line 3: is not CSV: unexpected end of data: a quote that opens"),
        ("a.csv", b"a,\xff\n1,2\n", "a.csv, line 1: is not UTF-8"),
        ("a.csv", "a,a\n1,2\n", "a.csv, line 1: names the column 'a' twice"),
        ("a.jsonl", "no\nno\n", "a.jsonl: holds no row that can be read (FOLDER/a.jsonl, line 1: is not JSON"),
    ],
)
def test_what_nothing_can_be_read_after_is_an_error_all_the_same(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError) as raised:
        _read(tmp_path / name, content)
    assert message in str(raised.value).replace(str(tmp_path), "FOLDER")


def test_a_limit_counts_the_rows_read_bad_ones_too(tmp_path: Path) -> None:
    rows = _read(tmp_path / "a.jsonl", '{"a": 1}\nno\n{"a": 3}\n', limit=2)
    assert [type(row) for row in rows] == [Row, BadRow]


def test_columns_are_those_of_the_first_row_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('no\n{"question": 1}\n', encoding="utf-8")
    rows = open_source(Source(path=str(path), bad_rows="drop", columns={"instruction": "question"}))
    assert rows.columns == ("instruction",)
    assert [type(row) for row in rows.read()] == [BadRow, Row]


def test_bad_rows_of_a_folder_are_numbered_on(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nno\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('no\n{"a": 2}\n', encoding="utf-8")
    read = list(open_source(Source(path=str(tmp_path), bad_rows="drop")).read())
    assert [(row.row if isinstance(row, BadRow) else row.number, row.where) for row in read] == [
        (1, f"{tmp_path}/a.jsonl, row 1"),
        (2, f"{tmp_path}/a.jsonl, line 2"),
        (3, f"{tmp_path}/b.jsonl, line 1"),
        (4, f"{tmp_path}/b.jsonl, row 2"),
    ]


@pytest.mark.parametrize(
    ("name", "size"), [*((f"a.{kind}", 1_000_000) for kind in ("json", "jsonl", "csv", "txt")), ("a.json", 50_000_000)]
)
def test_a_very_long_row_is_read_whole(tmp_path: Path, name: str, size: int) -> None:
    long = "x" * size
    content = {
        "a.json": json.dumps([{"text": long}, {"text": "b"}]),
        "a.jsonl": json.dumps({"text": long}) + '\n{"text": "b"}\n',
        "a.csv": f"text\n{long}\nb\n",
        "a.txt": f"{long}\nb\n",
    }
    limit = csv.field_size_limit()
    rows = _read(tmp_path / name, content[name])
    assert [row.values["text"] == text for row, text in zip(rows, (long, "b"), strict=True)] == [True, True]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'\xef\xbb\xbf\r\n{"a": "1"}\r\n   \r\n{"a": "2"}', ["1", "2"]),
        ("a.json", b'\xef\xbb\xbf \n[{"a": "1"},\r\n{"a": "2"}\r\n]\r\n', ["1", "2"]),
        ("a.csv", b'\xef\xbb\xbf\n"a"\r\n\r\n1\r\n"2"', ["1", "2"]),
        pytest.param(
            *("a.csv", b"a\n\0\n1", ["\0", "1"]),
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="its csv refuses NUL, as a malformed row"),
        ),
        ("a.tsv", b"a\tb\r\n1\t,\r\n2\tx", ["1", "2"]),
    ],
)
def test_marks_blank_lines_line_ends_and_a_last_line_without_one_are_read_as_meant(
    tmp_path: Path, name: str, content: bytes, expected: list[str]
) -> None:
    rows = _read(tmp_path / name, content)
    assert [row.values["a"] for row in rows if isinstance(row, Row)] == expected
    assert len(rows) == len(expected)


# Places that cannot be read


def test_a_broken_link_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl' is a link to something that is not there; mend the link"):
        open_source(Source(path=str(tmp_path / "a.jsonl")))


def test_something_that_is_neither_file_nor_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="is neither a file nor a folder; give a file"):
        open_source(Source(path=str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.zip"])
def test_a_file_without_permission_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as a user who may read everything
    with pytest.raises(DataError, match=rf"{name}: cannot be read: Permission denied; check the file and its perm"):
        open_source(Source(path=str(path)))


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        open_source(Source(path=str(tmp_path)))


@pytest.mark.parametrize("path", ["a\0b.jsonl", "x" * 5000 + ".jsonl"])
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError):
        open_source(Source(path=str(tmp_path / path)))


def test_the_home_of_a_user_whom_nobody_knows_is_no_folder() -> None:
    with pytest.raises(DataError, match="there is no folder '~nobody-knows-me'"):
        open_source(Source(path="~nobody-knows-me/a.jsonl"))


def test_a_folder_that_is_named_like_a_file_is_read_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    (tmp_path / "rows.jsonl" / "a.jsonl").write_text('{"a": 1}', encoding="utf-8")
    rows = open_source(Source(path=str(tmp_path / "rows.jsonl")))
    assert [dict(row.values) for row in rows.read() if isinstance(row, Row)] == [{"a": 1}]
