"""Archives and compressed files: read as what is inside them; damaged ones are always an error."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import DataError
from tunekit.testing import ReaderSuite
from tunekit.values import Row, Source
from tunekit_formats import Files
from tunekit_formats.reading import open_source

ROWS = [{"text": f"row {number} \u4f60"} for number in range(300)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
COMPRESSIONS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def _values(path: Path, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in open_source(Source(path=str(path), **options)).read() if isinstance(row, Row)]


def _pack(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                archive.writestr(name, content)
        return path
    mode = {".tar": "w", ".tgz": "w:gz", ".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}[path.suffix]
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


ARCHIVES = ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz"]


@pytest.mark.parametrize("suffix", list(COMPRESSIONS))
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_compressed_file_is_read_as_the_file_inside(tmp_path: Path, name: str, suffix: str) -> None:
    content = {
        "a.jsonl": LINES,
        "a.json": json.dumps(ROWS).encode(),
        "a.csv": b"text\n" + "".join(f"{row['text']}\n" for row in ROWS).encode(),
        "a.txt": "".join(f"{row['text']}\n" for row in ROWS).encode(),
    }
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](content[name]))
    assert _values(path) == ROWS


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.arrow.xz"])
def test_a_format_that_jumps_about_is_read_from_a_compressed_file_too(tmp_path: Path, name: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    feather, parquet = (pytest.importorskip(f"pyarrow.{module}") for module in ("feather", "parquet"))
    table, plain = pyarrow.Table.from_pylist(ROWS), tmp_path / "plain"
    if name.startswith("a.parquet"):
        parquet.write_table(table, plain)
    else:
        feather.write_feather(table, str(plain))
    path = tmp_path / name
    path.write_bytes(COMPRESSIONS[path.suffix](plain.read_bytes()))
    assert _values(path) == ROWS


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_read_like_a_folder_and_names_its_members(tmp_path: Path, name: str) -> None:
    files = [
        ("data/train-1.jsonl", b'{"a": 2}\n'),
        ("data/train-0.jsonl", b'{"a": 1}\n'),
        ("data/test.jsonl", b'{"a": 9}\n'),
        ("__MACOSX/data/._train-0.jsonl", b"\0\1"),
        ("README.md", b"words"),
    ]
    path = _pack(tmp_path / name, files)
    rows = open_source(Source(path=str(path)))
    first = [(row.number, row.where, row.values["a"]) for row in rows.read() if isinstance(row, Row)]
    assert first == [(1, f"{path}/data/train-0.jsonl, row 1", 1), (2, f"{path}/data/train-1.jsonl, row 1", 2)]
    assert [row.where for row in rows.read()] == [where for _, where, _ in first]
    assert _values(path, split="test") == [{"a": 9}]


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_folder_of_an_archive_named_after_a_split_holds_the_files_of_it(tmp_path: Path, name: str) -> None:
    path = _pack(tmp_path / name, [("d/test/0.jsonl", b'{"a": 9}\n'), ("d/train/0.jsonl", b'{"a": 1}\n')])
    assert _values(path) == [{"a": 1}]
    assert _values(path, split="test") == [{"a": 9}]


def test_a_compressed_file_in_an_archive_is_read(tmp_path: Path) -> None:
    assert _values(_pack(tmp_path / "a.zip", [("a.jsonl.gz", gzip.compress(LINES))])) == ROWS


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_fingerprint_of_an_archive_changes_with_its_bytes(tmp_path: Path, name: str) -> None:
    prints = []
    for folder, content in (("one", LINES), ("two", LINES.replace(b"row 7 ", b"row 8 "))):
        (tmp_path / folder).mkdir()
        path = _pack(tmp_path / folder / name, [("a.jsonl", content)])
        prints.append(open_source(Source(path=str(path))).fingerprint)
    assert prints[0] != prints[1]


@pytest.mark.parametrize("name", [*ARCHIVES, *(f"a.jsonl{suffix}" for suffix in COMPRESSIONS)])
@pytest.mark.parametrize("bad_rows", ["error", "drop"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_what_is_cut_off_is_always_an_error(tmp_path: Path, name: str, bad_rows: Any, kept: float) -> None:
    path = tmp_path / name
    if name.startswith("a.jsonl"):
        path.write_bytes(COMPRESSIONS[path.suffix](LINES))
    else:
        _pack(path, [("train-0.jsonl", LINES), ("train-1.jsonl", LINES)])
    content = path.read_bytes().rstrip(b"\0") if name == "a.tar" else path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=r"cannot be read: .*; check that the file is complete"):
        _values(path, bad_rows=bad_rows)


def test_a_tar_that_ends_between_two_files_is_an_error(tmp_path: Path) -> None:
    path = _pack(tmp_path / "a.tar", [("a.jsonl", LINES), ("b.jsonl", LINES)])
    path.write_bytes(path.read_bytes()[: 512 + (len(LINES) + 511) // 512 * 512])
    with pytest.raises(DataError, match="the archive is cut off or damaged"):
        _values(path)


def test_a_zip_with_a_wrong_checksum_is_an_error(tmp_path: Path) -> None:
    path = _pack(tmp_path / "a.zip", [("a.jsonl", LINES)])
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        checksum = archive.getinfo("a.jsonl").CRC.to_bytes(4, "little")
    path.write_bytes(content.replace(checksum, bytes(4)))
    with pytest.raises(DataError, match="Bad CRC-32"):
        _values(path)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("a.zip", [], "the archive '.*' has no data files"),
        ("a.tar", [("a.jsonl", b""), ("b.csv", b"")], r"the archive '.*' mixes kinds of files \(a.jsonl, b.csv\)"),
        ("a.zip", [("train.jsonl", LINES)], r"the archive '.*' has no split 'test'; splits found: train"),
        ("a.tar", [("a.jsonl", LINES), ("a.jsonl", LINES)], "holds the file a.jsonl twice"),
    ],
)
def test_an_archive_is_refused_with_a_reason(
    tmp_path: Path, name: str, files: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _values(_pack(tmp_path / name, files), split="test" if "test" in message else "train")


def test_a_locked_archive_is_refused(tmp_path: Path) -> None:
    path = _pack(tmp_path / "a.zip", [("a.jsonl", LINES)])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag in the directory at the end
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip/a\.jsonl: is locked with a password"):
        _values(path)


@pytest.mark.parametrize("name", ["a.gz", "a.tgz.zip2", "a.json.rar"])
def test_a_kind_that_is_not_read_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"is of a kind \(.*\) that is not read; use .json.* or one of .gz"):
        _values(tmp_path / name)


def test_zstandard_that_is_missing_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"needs zstandard to be read; `pip install tunekit-formats\[zstd\]`"):
        _values(tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_frames_of_zstandard_are_read_one_after_the_other_and_a_cut_one_is_an_error(
    tmp_path: Path, kept: float
) -> None:
    zstandard = pytest.importorskip("zstandard")
    content = zstandard.compress(LINES) + zstandard.compress(LINES)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(content[: int(len(content) * (0.5 + kept / 2))])
    if kept == 1.0:
        assert _values(path) == [*ROWS, *ROWS]
        return
    with pytest.raises(DataError, match="ends in the middle of a Zstandard frame"):
        _values(path)


class TestArchives(ReaderSuite):
    plugin = Files()

    def source(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Source:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return Source(path=str(_pack(folder / "rows.tar", [("rows.jsonl", lines)])))
