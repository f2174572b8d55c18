"""Addresses: what fsspec reads from far away, shown with its file system in memory."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import DataError
from tunekit.testing import ReaderSuite
from tunekit.values import Row, Source
from tunekit_formats import Files
from tunekit_formats.reading import open_source

fsspec = pytest.importorskip("fsspec")

ROWS = [{"text": f"row {number} \u4f60"} for number in range(300)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(autouse=True)
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)
    files.store.clear()


def _values(path: str, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in open_source(Source(path=path, **options)).read() if isinstance(row, Row)]


def _zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.jsonl", content)
    return buffer.getvalue()


def _parquet() -> bytes:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.zip", "a.parquet"])
def test_every_kind_of_file_is_read_from_an_address(memory: Any, name: str) -> None:
    content = {
        "a.jsonl": LINES,
        "a.json": json.dumps(ROWS).encode(),
        "a.jsonl.gz": gzip.compress(LINES),
        "a.zip": _zip(LINES),
        "a.parquet": _parquet(),
    }
    memory.pipe(f"/bucket/{name}", content[name])
    assert _values(f"memory://bucket/{name}") == ROWS
    (first,) = open_source(Source(path=f"memory://bucket/{name}", limit=1)).read()
    assert first.where == f"memory://bucket/{name}{'/train.jsonl' if name == 'a.zip' else ''}, row 1"


def test_a_folder_at_an_address_is_read_like_one_here(memory: Any) -> None:
    for name, number in (("train-1.jsonl", 2), ("train-0.jsonl", 1), ("test.jsonl", 9), ("README.md", 0)):
        memory.pipe(f"/bucket/data/{name}", json.dumps({"a": number}).encode())
    assert _values("memory://bucket/data") == [{"a": 1}, {"a": 2}]
    assert _values("memory://bucket/data/", split="test") == [{"a": 9}]
    rows = open_source(Source(path="memory://bucket/data"))
    assert next(rows.read()).where == "memory://bucket/data/train-0.jsonl, row 1"
    memory.pipe("/bucket/data/test/deep.jsonl", b'{"a": 10}')
    _, deep = open_source(Source(path="memory://bucket/data", split="test")).read()
    assert deep.where == "memory://bucket/data/test/deep.jsonl, row 1"


def test_a_file_address_is_a_file_here(tmp_path: Path) -> None:
    (tmp_path / "with space.jsonl").write_bytes(LINES)
    assert _values((tmp_path / "with space.jsonl").as_uri()) == ROWS


def test_the_fingerprint_of_a_file_far_away_is_its_tag_and_is_not_read_for(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/bucket/a.jsonl", LINES)
    plain = type(memory).info
    tag = "1"
    monkeypatch.setattr(type(memory), "info", lambda self, path, **options: {**plain(self, path), "ETag": tag})
    one, same = (open_source(Source(path="memory://bucket/a.jsonl")).fingerprint for _ in range(2))
    tag = "2"
    assert one == same != open_source(Source(path="memory://bucket/a.jsonl")).fingerprint


def test_an_address_without_a_package_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"the protocol s3:// needs a package .*; `pip install s3fs`"):
        _values("s3://bucket/a.jsonl")


def test_an_address_without_fsspec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(DataError, match=r"needs fsspec to be read; `pip install tunekit-formats\[cloud\]`"):
        _values("memory://bucket/a.jsonl")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memori://bucket/a.jsonl", r"the protocol memori:// is not known to fsspec; did you mean memory://\?"),
        ("memory://bucket/gone.jsonl", r"gone\.jsonl\): there is no such file or folder; check the address"),
        ("memory://bucket/a.xlsx", r"is of a kind \(\.xlsx\) that is not read"),
        ("memory://bucket/empty.jsonl", "holds no rows"),
    ],
)
def test_an_address_that_cannot_be_read_is_named(memory: Any, path: str, message: str) -> None:
    memory.pipe({"/bucket/a.xlsx": b"x", "/bucket/empty.jsonl": b""})
    with pytest.raises(DataError, match=message):
        _values(path)


def test_an_address_that_cannot_be_reached_tells_why(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise Unreachable("no route to host")

    memory.pipe("/bucket/a.jsonl", LINES)
    for method in ("_open", "info"):  # the second is asked first
        monkeypatch.setattr(type(memory), method, fail)
        with pytest.raises(
            DataError, match=r"a\.jsonl\)?: cannot be reached: no route to host; check the address, the"
        ):
            _values("memory://bucket/a.jsonl")


class TestAddresses(ReaderSuite):
    plugin = Files()

    def source(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Source:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        fsspec.filesystem("memory").pipe(f"{folder}/rows.jsonl", content)
        return Source(path=f"memory:/{folder}/rows.jsonl")
