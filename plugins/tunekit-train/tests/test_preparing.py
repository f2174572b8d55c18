"""Examples become items: when they are encoded, and when what an earlier run encoded is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import DataError, TunekitError
from tunekit.values import Account, Example, Examples, Kind, Message, Mixing
from tunekit_train import preparing
from tunekit_train.items import Items
from tunekit_train.preparing import cache_key, prepare_with
from tunekit_train.store import StoredItems
from tunekit_train.streaming import StreamedItems
from tunekit_train.testing import WordEncoder, context, word_examples

TEXT: frozenset[Kind] = frozenset({"text"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def examples(fingerprint: str = "data", count: int = 6, **mixing: Any) -> Examples:
    return Examples.of(word_examples(count), fingerprint, Mixing(**mixing))


def prepared(encoder: WordEncoder, data: Examples, tmp_path: Path, kinds: frozenset[Kind] = TEXT) -> Any:
    return prepare_with(encoder, data, kinds, context(tmp_path))


def ids(items: Any) -> list[list[int]]:
    return [[int(token) for token in sequence.ids] for item in items for sequence in item.sequences]


def test_a_second_run_takes_what_the_first_encoded(tmp_path: Path) -> None:
    first, second = WordEncoder(), WordEncoder()
    made = prepared(first, examples(), tmp_path)
    found = prepared(second, examples(shuffle=False), tmp_path)
    assert (len(first.encoded), len(second.encoded)) == (6, 0)
    assert ids(found) == ids(made)
    assert found.account.to_mapping() == made.account.to_mapping()
    assert found.account.kept == 6
    assert (made.mixing.shuffle, found.mixing.shuffle) == (True, False)


def test_other_data_another_encoder_and_other_kinds_are_encoded_anew(tmp_path: Path) -> None:
    prepared(WordEncoder(), examples(), tmp_path)
    both: frozenset[Kind] = frozenset({"text", "conversation"})
    for encoder, data, kinds in (
        (WordEncoder(), examples("other data"), TEXT),
        (WordEncoder(fingerprint="another tokenizer, template or rule"), examples(), TEXT),
        (WordEncoder(), examples(), both),
    ):
        prepared(encoder, data, tmp_path, kinds)
        assert len(encoder.encoded) == 6


def test_data_of_another_name_is_told_by_that_name(tmp_path: Path) -> None:
    prepared(WordEncoder(), replace(examples(), names=("rows.json",)), tmp_path)
    encoder = WordEncoder()
    prepared(encoder, replace(examples(), names=("/data/rows.json",)), tmp_path)
    assert len(encoder.encoded) == 6


def test_other_code_never_meets_what_this_one_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(WordEncoder(), examples(), tmp_path)
    monkeypatch.setattr(preparing, "code_fingerprint", lambda module: "an edited line")
    encoder = WordEncoder()
    prepared(encoder, examples(), tmp_path)
    assert len(encoder.encoded) == 6


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    assert cache_key("ab", "c", TEXT) != cache_key("a", "bc", TEXT)


def test_a_sample_is_encoded_in_memory(tmp_path: Path, cache: Path) -> None:
    for streaming in (False, True):
        made = prepared(WordEncoder(), examples("", streaming=streaming), tmp_path)
        assert isinstance(made, Items)
        assert made.account.kept == 6
    assert not cache.exists()


def test_streamed_data_waits_for_the_training(tmp_path: Path, cache: Path) -> None:
    encoder = WordEncoder()
    made = prepared(encoder, examples(streaming=True), tmp_path)
    assert isinstance(made, StreamedItems)
    assert (made.size, encoder.encoded) == (None, [])
    assert not cache.exists()
    assert ids(made) == ids(prepared(WordEncoder(), examples(), tmp_path))


def test_rows_that_stop_the_run_are_told_every_time(tmp_path: Path, cache: Path) -> None:
    rows = [*word_examples(3), Example(4, "rows.json, row 4", text="", source="rows.json")]
    for _ in range(2):
        made = prepared(WordEncoder(), Examples.of(rows, "data"), tmp_path)
        assert len(made) == 3
        with pytest.raises(DataError, match=r"rows.json, row 4: has no word; write one"):
            made.account.stop_on_problems()


def test_rows_left_out_are_told_from_the_cache_as_well(tmp_path: Path) -> None:
    rows = [*word_examples(3), Example(4, "rows.json, row 4", text="", source="rows.json", optional=True)]
    made, found = (prepared(WordEncoder(), Examples.of(rows, "data"), tmp_path) for _ in range(2))
    assert isinstance(found, StoredItems)
    assert made.account.to_mapping() == found.account.to_mapping()
    assert found.account.sources["rows.json"].left_out["has no word"].where == ["rows.json, row 4"]


def test_a_row_of_another_kind_stops_the_run_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    talk = Example(7, "talks.json, row 7", messages=(Message("user", "hi"), Message("assistant", "ho")))
    with pytest.raises(DataError, match=r"talks.json, row 7: is a conversation, and sft trains on a document; name"):
        prepared(WordEncoder(), Examples.of([*word_examples(2), talk], "data"), tmp_path)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(TunekitError, match="make room there, or set TUNEKIT_CACHE to a folder that can be written"):
        prepared(WordEncoder(), examples(), tmp_path)


def test_a_data_set_that_cannot_be_read_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    def start(account: Account) -> Iterator[Example]:
        raise OSError("the disk with the data is gone")
        yield

    with pytest.raises(OSError, match="the disk with the data is gone"):
        prepared(WordEncoder(), replace(examples(), start=start), tmp_path)
