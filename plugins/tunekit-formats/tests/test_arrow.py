"""Parquet, Arrow streams and files, Feather, and folders that `datasets` has saved."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import DataError
from tunekit.testing import ReaderSuite
from tunekit.values import Row, Source
from tunekit_formats import Files
from tunekit_formats.reading import open_source

pyarrow = pytest.importorskip("pyarrow")
feather, ipc, parquet = (pytest.importorskip(f"pyarrow.{module}") for module in ("feather", "ipc", "parquet"))

ROWS = [{"text": f"row {number} \u4f60", "turns": [{"role": "user", "n": number}]} for number in range(3000)]


def _values(path: Path, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in open_source(Source(path=str(path), **options)).read() if isinstance(row, Row)]


def _write(path: Path, form: str, rows: Sequence[Mapping[str, Any]] = ROWS) -> Path:
    table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    if form == "parquet":
        parquet.write_table(table, path, row_group_size=700)
    elif form == "feather":
        feather.write_feather(table, str(path))
    else:
        start = ipc.new_stream if form == "stream" else ipc.new_file
        with start(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    return path


KINDS = [("a.parquet", "parquet"), ("a.feather", "feather"), ("a.arrow", "stream"), ("a.arrow", "file")]


@pytest.mark.parametrize(("name", "form"), KINDS)
def test_every_form_gives_its_rows_in_order_with_their_numbers(tmp_path: Path, name: str, form: str) -> None:
    path = _write(tmp_path / name, form)
    rows = open_source(Source(path=str(path)))
    read = [row for row in rows.read() if isinstance(row, Row)]
    assert [dict(row.values) for row in read] == ROWS
    assert [row.number for row in read] == list(range(1, 3001))
    assert read[-1].where == f"{path}, row 3000"
    assert rows.columns == ("text", "turns")


@pytest.mark.parametrize(("name", "form"), KINDS)
@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_what_is_cut_off_is_always_an_error(tmp_path: Path, name: str, form: str, bad_rows: Any) -> None:
    path = _write(tmp_path / name, form)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"{name}: is not (whole|Parquet|Arrow): .*; check that the file is complete"):
        _values(path, bad_rows=bad_rows)


@pytest.mark.parametrize(("name", "form"), KINDS)
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, name: str, form: str) -> None:
    array = pyarrow.array(["a"])
    table = pyarrow.Table.from_arrays([array, array], names=["text", "text"])
    path = tmp_path / name
    if form == "parquet":
        parquet.write_table(table, path)
    else:
        with (ipc.new_stream if form == "stream" else ipc.new_file)(str(path), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match="names the column 'text' twice; give each column its own name"):
        _values(path)


def test_feather_of_version_1_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(20))
    with pytest.raises(DataError, match="is Feather of version 1; write it as version 2"):
        _values(tmp_path / "a.feather")


def test_wrong_offsets_are_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.arrow", "stream", [{"text": "aaaa"}, {"text": "bbbb"}])
    content = path.read_bytes()
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 4, 8))
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, b"\0\0\0\0\xff\xff\xff\x7f\x08\0\0\0"))
    with pytest.raises(DataError, match=r"a\.arrow: is not whole"):
        _values(path)


# Folders that `datasets` has saved


def _saved(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS, **options: Any) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([dict(row) for row in rows]).save_to_disk(str(folder), **options)
    return folder


def test_a_saved_data_set_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    path = _saved(tmp_path / "saved", num_shards=3)
    assert len(list(path.glob("*.arrow"))) == 3
    assert _values(path) == ROWS
    with pytest.raises(DataError, match="has no split 'test'; splits found: train"):
        _values(path, split="test")


def test_a_saved_data_set_of_splits_is_read_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    splits = {"train": datasets.Dataset.from_list(ROWS), "odd": datasets.Dataset.from_list(ROWS[1::2])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert _values(tmp_path / "saved", split="odd") == ROWS[1::2]
    assert len(_values(tmp_path / "saved")) == 3000
    with pytest.raises(DataError, match="has no split 'test'; splits found: odd, train"):
        _values(tmp_path / "saved", split="test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"state\.json: is not JSON"),
        ("[]", r"state\.json: tells nothing of a data set"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "names no Arrow files in its state.json"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', r"gone\.arrow: cannot be read: No such file"),
    ],
)
def test_a_saved_data_set_that_is_broken_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = _saved(tmp_path / "saved", ROWS[:3])
    (path / "state.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        _values(path)


def test_a_saved_data_set_is_read_without_importing_datasets(tmp_path: Path) -> None:
    path = _saved(tmp_path / "saved", ROWS[:3])
    script = (
        "import sys; from tunekit.values import Source; from tunekit_formats.reading import open_source;"
        f"assert len(list(open_source(Source(path={str(path)!r})).read())) == 3;"
        "assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class TestSavedDataSets(ReaderSuite):
    plugin = Files()

    def source(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Source:
        return Source(path=str(_saved(folder / "saved", rows)))


class TestParquet(ReaderSuite):
    plugin = Files()

    def source(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Source:
        return Source(path=str(_write(folder / "rows.parquet", "parquet", rows)))
