"""Reading: every kind of file, folders, hub data sets, rows in Python, and what is said of a broken one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tunekit.errors import DataError
from tunekit.values import Row, Rows, Source
from tunekit_formats import Files
from tunekit_formats.reading import hub

ROWS = [{"instruction": 'a, "b"', "output": "line\nline é 你好 "}, {"instruction": "c", "output": "d"}]


def _open(path: Path | str | None = None, **options: Any) -> Rows:
    return Files().tunekit_read_data(Source(path=None if path is None else str(path), **options))


def _values(rows: Rows) -> list[dict[str, Any]]:
    return [dict(row.values) for row in rows.read()]


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _csv(rows: list[dict[str, str]], mark: str = ",") -> str:
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row.values()] for row in rows]
    return "\r\n".join(mark.join(cells) for cells in [list(rows[0]), *quoted]) + "\r\n"


def _make(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    contents = {
        ".json": json.dumps(rows, indent=1),
        ".jsonl": "\n".join(json.dumps(row) for row in rows),
        ".csv": _csv(rows),
        ".tsv": _csv(rows, "\t"),
    }
    return _write(path, contents[path.suffix])


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows_on_every_pass(tmp_path: Path, suffix: str) -> None:
    path = _make(tmp_path / f"data.{suffix}", ROWS)
    rows = _open(path)
    assert (rows.columns, _values(rows), _values(rows)) == (("instruction", "output"), ROWS, ROWS)
    assert [(row.number, row.where) for row in rows.read()] == [(1, f"{path}, row 1"), (2, f"{path}, row 2")]
    assert rows.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_text_files_give_one_document_per_line(tmp_path: Path) -> None:
    rows = _open(_write(tmp_path / "a.txt", "one\u2028still one\r\n\n  \n two"))
    assert _values(rows) == [{"text": "one\u2028still one"}, {"text": " two"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", '{"text": "a"}\n{"text": "b"}\n'),
        ("list.jsonl", ' [{"text": "a"},\n {"text": "b"}] '),
        ("mark.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "b"}'),
        ("mark.csv", b"\xef\xbb\xbftext\na\n\nb\n"),
    ],
)
def test_lists_lines_byte_order_marks_and_blank_lines_are_all_read(
    tmp_path: Path, name: str, content: str | bytes
) -> None:
    assert _values(_open(_write(tmp_path / name, content))) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n\n{"text": }\n', "a.jsonl, line 3: is not JSON: Expecting value (column 10)"),
        ("a.json", '[\n{"text": "a"},\n{"text": "b" "c"}]', "a.json, line 3: is not JSON: Expecting ',' delimiter"),
        ("a.json", '[{"text": "a"},\n]', "a.json, line 2: is not JSON: Expecting value"),
        ("a.json", '[{"text": "a"}\n{"text": "b"}]', "a.json, line 2: is not JSON: expected a comma or the end"),
        ("a.json", '[{"text": "a"}', "a.json, line 1: is not JSON: expected a comma or the end of the list"),
        ("a.json", '[{"text": "a"}]\n[]', "a.json, line 2: is not JSON: there is more after the end of the list"),
        ("a.json", '{\n"data": [{"text": "a"}]\n}', "the file is one object; write a list of rows"),
        ("a.json", '[{"text": "a"}, "b"]', "a.json, row 2: is text, expected an object with columns"),
        ("a.jsonl", '{"text": "a"}\nnull', "a.jsonl, line 2: is null, expected an object with columns"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "a.jsonl, line 2: is not UTF-8 (byte 0xe9); save the file as"),
        ("a.json", b'[{"text": "a"},\n{"text": "\xe9"}]', "a.json, line 2: is not UTF-8"),
        ("a.txt", "a".encode("utf-16"), "a.txt, line 1: is not UTF-8"),
        ("a.csv", b"text\na\n\xff\n", "a.csv, line 3: is not UTF-8"),
        ("a.csv", "text,label\na,b,c\n", "a.csv, line 2: has 3 cells, the header has 2; put quotes around text"),
        ("a.csv", "text,label\na,b\nc\n", "a.csv, line 3: has 1 cells, the header has 2"),
        ("a.csv", "text,text\na,b\n", "a.csv, line 1: names the column 'text' twice"),
        ("a.csv", 'text\n"a"b\n', "a.csv, line 2: is not CSV"),
        ("a.csv", "te\rxt\na\n", "a.csv, line 1: is not CSV"),
        ("a.parquet", "no", "a.parquet: is not Parquet"),
        ("a.csv", "instruction;output\na;b\n", "line 1: names one column, 'instruction;output', as if cells"),
        ("a.csv", "a\tb\n1\t2\n", r"separated by '\t'; separate them by commas in .csv, by tabs in .tsv"),
        ("a.tsv", "a,b\n1,2\n", "as if cells were separated by ','"),
        ("a.jsonl", "[" * 200_000, "nested too deeply"),
        ("a.xlsx", "", "is of a kind (.xlsx) that is not read; use .json, .jsonl, .csv"),
        *((f"a{suffix}", "", "holds no rows") for suffix in (".json", ".jsonl", ".csv", ".txt")),
        ("a.json", "[]", "holds no rows; give at least one row"),
        ("a.csv", "text\n", "holds no rows"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = _write(tmp_path / name, content)
    with pytest.raises(DataError) as raised:
        _values(_open(path))
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_only_as_much_is_parsed_as_is_read(tmp_path: Path) -> None:
    rows = _open(_write(tmp_path / "a.json", '[{"text": "a"}, {"text": "b"}, broken'))
    assert dict(next(rows.read()).values) == {"text": "a"}


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], "string")}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        _open(tmp_path / "a.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _make(tmp_path / "a.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install tunekit-formats\[parquet\]"):
        _open(path)


def test_a_missing_file_suggests_the_nearest_in_its_folder(tmp_path: Path) -> None:
    _make(tmp_path / "alpaca.json", ROWS)
    with pytest.raises(DataError, match=r"there is no file or folder '.*alpca\.json'; did you mean '.*alpaca\.json'\?"):
        _open(tmp_path / "alpca.json")


def test_a_missing_folder_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        _open(tmp_path / "nowhere" / "alpaca.json")


def test_a_source_without_path_and_rows_is_refused() -> None:
    with pytest.raises(DataError, match="names neither a path nor rows"):
        _open()


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _make(tmp_path / "a.json", ROWS)
    assert _values(_open("~/a.json")) == ROWS


def test_rows_given_in_python_are_read_as_they_are() -> None:
    rows = _open(rows=ROWS, key="stages.0.sft.data")
    assert (_values(rows), rows.columns) == (ROWS, ("instruction", "output"))
    assert next(rows.read()).where == "stages.0.sft.data (rows given in Python), row 1"


@pytest.mark.parametrize(("given_rows", "message"), [([], "holds no rows"), ([{"a": 1}, 3], "row 2: is a number")])
def test_rows_in_python_must_be_objects_with_columns(given_rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _values(_open(rows=given_rows))


def test_a_limit_keeps_the_first_rows() -> None:
    assert _values(_open(rows=ROWS, limit=1)) == ROWS[:1]


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first, same, other = (_write(tmp_path / f"{name}.txt", text) for name, text in [("a", "x"), ("b", "x"), ("c", "y")])
    assert _open(first).fingerprint == _open(same).fingerprint != _open(other).fingerprint
    assert _open(rows=[{"a": 1}]).fingerprint != _open(rows=[{"a": 2}]).fingerprint


# Columns


def test_columns_are_renamed_and_the_old_names_are_gone() -> None:
    rows = _open(rows=[{"question": "a", "output": "b", "instruction": "old"}], columns={"instruction": "question"})
    assert _values(rows) == [{"instruction": "a", "output": "b"}]
    assert set(rows.columns) == {"instruction", "output"}


def test_columns_can_be_swapped() -> None:
    swapped = {"instruction": "output", "output": "instruction"}
    assert _values(_open(rows=[{"instruction": 1, "output": 2}], columns=swapped)) == [{"instruction": 2, "output": 1}]


def test_a_column_to_be_renamed_may_be_missing_from_some_rows_of_json() -> None:
    rows = _open(rows=[{"text": "a"}, {"text": "b", "sys": "c"}], columns={"system": "sys"})
    assert _values(rows) == [{"text": "a"}, {"system": "c", "text": "b"}]


def test_renaming_a_column_that_is_nowhere_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match=r"data\.columns\.instruction: .*no column 'qestion'; did you mean 'question'"):
        _open(rows=[{"question": "a"}], columns={"instruction": "qestion"})


# Folders


def test_a_folder_is_read_file_by_file_sorted_by_name(tmp_path: Path) -> None:
    for name, text in [("b", "2"), ("a", "1")]:
        _make(tmp_path / f"{name}.jsonl", [{"text": text}])
    _write(tmp_path / "README.md", "not data")
    _write(tmp_path / ".hidden.csv", "x")
    rows = _open(tmp_path)
    assert [(row.number, row.where, row.values["text"]) for row in rows.read()] == [
        (1, f"{tmp_path}/a.jsonl, row 1", "1"),
        (2, f"{tmp_path}/b.jsonl, row 1", "2"),
    ]


def test_files_in_folders_of_a_folder_are_read_too(tmp_path: Path) -> None:
    for name in ("b/deep/er", "a", "b/deep", "c/_tool", ".git/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        _make(tmp_path / f"{name}.jsonl", [{"text": name}])
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    rows = list(_open(tmp_path).read())
    assert [row.values["text"] for row in rows] == ["a", "b/deep", "b/deep/er"]
    assert rows[2].where == f"{tmp_path}/b/deep/er.jsonl, row 1"


def test_a_folder_named_after_a_split_holds_the_files_of_it(tmp_path: Path) -> None:
    for name in ("data/train/0.jsonl", "data/train/sub/0.jsonl", "data/test/0.jsonl", "data/test/train.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        _make(tmp_path / name, [{"text": name}])
    train = ["data/test/train.jsonl", "data/train/0.jsonl", "data/train/sub/0.jsonl"]
    assert [row["text"] for row in _values(_open(tmp_path))] == train
    assert [row["text"] for row in _values(_open(tmp_path, split="test"))] == ["data/test/0.jsonl"]
    assert len(_values(_open(tmp_path / "data" / "test" / "0.jsonl"))) == 1


def test_a_link_in_a_folder_that_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    _make(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"b\.jsonl: cannot be read: No such file"):
        _open(tmp_path)


def test_the_fingerprint_of_a_folder_changes_with_any_file(tmp_path: Path) -> None:
    for name in "ab":
        _make(tmp_path / f"{name}.jsonl", [{"text": name}])
    before = _open(tmp_path).fingerprint
    _make(tmp_path / "b.jsonl", [{"text": "c"}])
    assert _open(tmp_path).fingerprint != before


def test_files_named_after_splits_are_chosen_by_split(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        _make(tmp_path / f"{name}.jsonl", [{"text": name}])
    assert [row["text"] for row in _values(_open(tmp_path))] == ["train-00000-of-00002", "train-00001-of-00002"]
    assert [row["text"] for row in _values(_open(tmp_path, split="test"))] == ["test"]
    with pytest.raises(DataError, match=r"has no split 'dev'; splits found: test, train"):
        _open(tmp_path, split="dev")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no data files"),
        ({"a.jsonl": '{"text": "a"}', "b.csv": "text\na\n"}, "mixes kinds of files"),
        ({"train.jsonl": '{"text": "a"}', "more.jsonl": '{"text": "a"}'}, r"named splits and others \(more.jsonl\)"),
        ({"a.jsonl": '{"text": "a"}', "b.jsonl": '{"messages": []}'}, "mixes columns: a.jsonl has text, b.jsonl has"),
        ({"a.csv": "text\na\n", "b.csv": "text,more\na,b\n"}, "mixes columns"),
    ],
)
def test_a_mixed_folder_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        _write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        _open(tmp_path)


def test_json_files_of_a_folder_may_leave_columns_out(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", '{"text": "a"}')
    _write(tmp_path / "b.jsonl", '{"text": "b", "more": 1}')
    assert _values(_open(tmp_path)) == [{"text": "a"}, {"text": "b", "more": 1}]


@pytest.mark.parametrize("options", [{"rows": ROWS}, {"path": "file"}])
def test_a_split_of_something_that_has_none_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    path = _make(tmp_path / "a.jsonl", ROWS)
    options = {"path": str(path)} if "path" in options else options
    with pytest.raises(DataError, match=r"data\.split: .*has no split 'test'"):
        Files().tunekit_read_data(Source(split="test", **options))


# The hub


def _hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[str, dict[str, Any]]]:
    """Let `datasets` answer this without a network, and record what it is asked for."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def load_dataset(path: str, **options: Any) -> Any:
        asked.append((path, options))
        if isinstance(answer, Exception):
            raise answer
        return answer

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_data_set_is_asked_for_with_its_split_subset_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = _hub(monkeypatch, datasets.Dataset.from_list(ROWS))
    rows = _open("owner/name", subset="small", revision="v1", split="test")
    assert asked == [("owner/name", {"name": "small", "split": "test", "revision": "v1"})]
    assert (_values(rows), _values(rows)) == (ROWS, ROWS)
    assert next(rows.read()).where == "owner/name/small, row 1"


@pytest.mark.parametrize(
    ("path", "name", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("hf://datasets/wiki_qa", "wiki_qa", None),
        ("hf://datasets/owner/name@v1", "owner/name", "v1"),
    ],
)
def test_a_hub_data_set_has_a_name_or_an_address(
    monkeypatch: pytest.MonkeyPatch, path: str, name: str, revision: str | None
) -> None:
    datasets = pytest.importorskip("datasets")
    asked = _hub(monkeypatch, datasets.Dataset.from_list(ROWS))
    assert _values(_open(path, split="train[:10%]", folder="python")) == ROWS
    expected = {"name": None, "split": "train[:10%]", "revision": revision, "data_dir": "python"}
    assert asked == [(name, expected)]


def test_a_hub_data_set_from_the_same_cached_files_is_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "cached"))
    seen = []
    monkeypatch.setattr(hub, "dataset_fingerprint", lambda data: seen.append(data) or "print")
    for split in ("train", "train", "train[:1]"):
        _hub(monkeypatch, datasets.load_from_disk(str(tmp_path / "cached")))
        assert _open("owner/name", split=split).fingerprint == "print"
    assert len(seen) == 2


def test_a_hub_data_set_without_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    _hub(monkeypatch, datasets.Dataset.from_dict({"text": []}))
    with pytest.raises(DataError, match="holds no rows"):
        _open("owner/name")


def test_the_fingerprint_of_a_hub_data_set_follows_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    prints = []
    for rows in (ROWS, ROWS, ROWS[:1]):
        _hub(monkeypatch, datasets.Dataset.from_list(rows))
        prints.append(_open("owner/name").fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_a_hub_that_cannot_be_reached_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, ConnectionError("Couldn't reach 'owner/name' on the Hub"))
    with pytest.raises(DataError, match=r"is no file or folder here, .* Couldn't reach 'owner/name' on the Hub; check"):
        _open("owner/name")


def test_a_hub_data_set_without_datasets_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install tunekit-formats\[hub\]"):
        _open("owner/name")


@pytest.mark.parametrize("path", ["nam", "./name", "owner/name.json", "{folder}/name"])
def test_a_missing_file_never_asks_the_hub(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _hub(monkeypatch, ROWS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="there is no f"):
        _open(path.replace("{folder}", "data"))
    assert asked == []


def test_options_are_checked() -> None:
    with pytest.raises(ValidationError, match="subsets"):
        Files(subsets="small")


# Properties

CELL = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(CELL, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@given(
    rows=st.lists(st.dictionaries(st.text(), JSON, max_size=4), min_size=1, max_size=5), indent=st.none() | st.just(2)
)
@settings(max_examples=60, deadline=None)
def test_whatever_json_can_hold_is_read_back_from_lists_and_from_lines(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], indent: int | None
) -> None:
    folder = tmp_path_factory.mktemp("json")
    listed = _write(folder / "a.json", json.dumps(rows, indent=indent))
    lines = _write(folder / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert _values(_open(listed)) == rows
    assert _values(_open(lines)) == rows


@given(content=st.binary(max_size=60) | st.text(alphabet='[]{}",:\n a1\\', max_size=40).map(str.encode))
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("suffix", [".json", ".csv", ".txt", ".parquet"])
def test_any_bytes_give_rows_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    path = _write(tmp_path_factory.getbasetemp() / f"any{suffix}", content)
    read: list[Row] = []
    with contextlib.suppress(DataError):
        read = list(_open(path).read())
    assert [row.number for row in read] == list(range(1, len(read) + 1))


def test_reading_json_imports_neither_torch_nor_datasets_nor_pyarrow(tmp_path: Path) -> None:
    path = _make(tmp_path / "a.json", ROWS)
    script = (
        "import sys; from tunekit.values import Source; from tunekit_formats import Alpaca, Files;"
        f"rows = Files().tunekit_read_data(Source(path={str(path)!r}));"
        "assert len(list(Alpaca().tunekit_format_data(rows))) == 2;"
        "assert not {'torch', 'datasets', 'pyarrow', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
