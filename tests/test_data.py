"""Sources become one stream of examples: mixed as asked, every row in the account, a fingerprint that tells them."""

from __future__ import annotations

import sys
from dataclasses import fields, replace

import pytest

from tunekit.calls import Calls
from tunekit.data import code_fingerprint, open_examples
from tunekit.errors import DataError
from tunekit.pipeline import Pipeline
from tunekit.values import Account, Mixing, Row, Rows, Source


@pytest.fixture
def calls(world):
    plan = Pipeline("m", [{"text": "a"}], stages=["steps"]).plan(estimate=False)
    return Calls(plan.plugins)


def source(*texts, **options):
    return Source(rows=tuple({"text": text} for text in texts), **{"key": f"data.{texts[0]}", **options})


def texts(examples):
    return [example.text for example in examples]


def test_each_pass_reads_anew_and_counts_anew(calls):
    examples = open_examples(calls, [source("a", "b"), source("c")])
    assert texts(examples) == texts(examples) == ["a", "b", "c"]
    assert [(each.rows, each.kept) for each in examples.account.sources.values()] == [(2, 2), (1, 1)]


def test_a_limit_takes_the_first_rows_of_each_source(calls):
    assert texts(open_examples(calls, [source("a", "b"), source("c", "d")], limit=1)) == ["a", "c"]
    assert texts(open_examples(calls, [source("a", "b", "c", limit=2)], limit=5)) == ["a", "b"]


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("first", ["a", "x", "b", "a2", "y", "b2", "a3", "z", "b3", "a4"]),
        ("each", ["a", "x", "b", "a2", "y", "b2", "a3", "z", "b3", "a4", "b4", "a5", "b5"]),
    ],
)
def test_sources_are_interleaved_by_weight(calls, until, expected):
    heavy = source("a", "b", "a2", "b2", "a3", "b3", "a4", "b4", "a5", "b5", weight=2.0)
    light = source("x", "y", "z")
    found = texts(open_examples(calls, [heavy, light], Mixing("interleave", until)))
    assert found == expected
    assert sorted(found[:6]) == sorted(["a", "b", "a2", "b2", "x", "y"]), "two to one"


def test_until_the_last_ends_the_others_start_again_and_are_counted_once(calls):
    examples = open_examples(calls, [source("a", "b", "c", "d"), source("x")], Mixing("interleave", "last"))
    assert texts(examples) == ["a", "x", "b", "x", "c", "x", "d", "x"]
    assert [example.again for example in examples] == [False, False, False, True, False, True, False, True]
    assert [each.rows for each in examples.account.sources.values()] == [4, 1]


def test_bad_rows_are_noted_with_their_source_and_stop_unless_dropped(calls):
    examples = open_examples(calls, [source("a", "", "b"), source("c", "", bad_rows="drop")])
    assert texts(examples) == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"row 2: the text is empty; write something(.|\n)*1 rows in all"):
        examples.account.stop_on_problems()
    kept = open_examples(calls, [source("c", "", bad_rows="drop")])
    list(kept)
    kept.account.stop_on_problems()


def test_rows_that_say_the_same_are_counted_as_duplicates(calls):
    examples = open_examples(calls, [source("a", "b", "a", "a")])
    list(examples)
    (account,) = examples.account.sources.values()
    assert account.duplicates.count == 2
    assert account.duplicates.where[0].endswith("row 3")


@pytest.mark.parametrize("mixing", [Mixing(), Mixing("interleave", "last")])
def test_rows_that_another_source_holds_are_duplicates_and_those_read_again_are_not(calls, mixing):
    examples = open_examples(calls, [source("a", "b", "c"), source("b")], mixing)
    list(examples)
    assert [each.duplicates.count for each in examples.account.sources.values()] in ([0, 1], [1, 0])


def test_an_account_survives_being_written_down(calls):
    examples = open_examples(calls, [source("a", "", "a", bad_rows="drop")])
    list(examples)
    again = Account.from_mapping(examples.account.to_mapping())
    assert again.to_mapping() == examples.account.to_mapping()
    assert again.kept == 2


def test_the_fingerprint_changes_with_data_options_and_mixing(calls):
    one = source("a", "b")
    changes = [
        open_examples(calls, [one]),
        open_examples(calls, [source("a", "b", "c")]),
        open_examples(calls, [replace(one, limit=1)]),
        open_examples(calls, [replace(one, columns={"text": "text"})]),
        open_examples(calls, [one, source("x")]),
        open_examples(calls, [one, source("x")], Mixing("interleave")),
    ]
    found = [each.fingerprint for each in changes]
    assert len(set(found)) == len(found)
    assert open_examples(calls, [one]).fingerprint == found[0]
    assert open_examples(calls, [one], limit=5).fingerprint == "", "a sample is not worth keeping"


CHANGED = {
    "path": "b.txt", "format": "text", "columns": {"text": "text"}, "tags": {"role": "who"}, "subset": "en",
    "revision": "v2", "split": "train[1:]", "limit": 1, "weight": 2.0, "folder": "images", "bad_rows": "drop",
}  # fmt: skip


@pytest.mark.parametrize("option", sorted({each.name for each in fields(Source)} - {"rows", "key"}))
def test_the_fingerprint_changes_with_every_option_of_a_source(calls, option, monkeypatch):
    def open_same(caller, hook, source):
        rows = (Row(1, "row 1", {"text": "a"}), Row(2, "row 2", {"text": "b"}))
        return Rows(source, ("text",), lambda: iter(rows), "the same bytes")

    monkeypatch.setattr(Calls, "own", open_same)
    plain = Source("a.txt")
    changed = replace(plain, **{option: CHANGED[option]})
    first, second = open_examples(calls, [plain]), open_examples(calls, [changed])
    if option == "path":
        assert first.fingerprint == second.fingerprint, "the same data may lie elsewhere when a run is resumed"
        assert (first.names, second.names) == (("a.txt",), ("b.txt",))
    else:
        assert first.fingerprint != second.fingerprint


def test_everything_wrong_with_the_sources_is_said_at_once(calls):
    bad, worse = Source(rows=({"x": 1},), key="data.0"), Source(rows=({"y": 1},), key="data.1")
    with pytest.raises(DataError) as caught:
        open_examples(calls, [bad, worse])
    assert [problem.where for problem in caught.value.problems] == [bad.name, worse.name]


def test_the_fingerprint_of_code_changes_with_every_edit(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "fake_edited"
    package.mkdir()
    found = []
    for text in ("", "# a word", "# another word"):
        (package / "__init__.py").write_text(text)
        __import__("fake_edited")
        code_fingerprint.cache_clear()
        found.append(code_fingerprint("fake_edited.part"))
    del sys.modules["fake_edited"]
    code_fingerprint.cache_clear()
    assert len(set(found)) == 3


def test_the_code_of_a_package_in_a_namespace_is_its_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fake_shared" / "part").mkdir(parents=True)
    found = []
    for text in ("", "# a word"):
        (tmp_path / "fake_shared" / "part" / "__init__.py").write_text(text)
        __import__("fake_shared.part")
        code_fingerprint.cache_clear()
        found.append(code_fingerprint("fake_shared.part"))
    for name in ("fake_shared.part", "fake_shared"):
        del sys.modules[name]
    code_fingerprint.cache_clear()
    assert found[0] != found[1]
