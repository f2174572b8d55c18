"""Blocks of documents: nothing is lost, every token that can be is trained, and any block is found again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekit.values import Account, Example, Examples, Item, Message, Mixing
from tunekit_sft import Pretrain
from tunekit_sft.blocks import BlockEncoder
from tunekit_sft.streamed_blocks import StreamedBlocks
from tunekit_train import Encoder, Rules, streaming
from tunekit_train.items import Items
from tunekit_train.store import StoredItems
from tunekit_train.streaming import Position
from tunekit_train.testing import context, tiny_tokenizer, word_examples

END = 2
TOKENIZER = tiny_tokenizer()
both_ways = pytest.mark.parametrize("crossing", [False, True])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and chunks that are smaller than the data."""
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(streaming, "CHUNK", 4)


def documents(lengths: Iterable[int]) -> list[Example]:
    """Documents of so many words, each of another word."""
    return [
        Example(row, f"rows.json, row {row}", text=" ".join([f"t{3 + row % 120}"] * length), source="rows.json")
        for row, length in enumerate(lengths, 1)
    ]


def tokens_of(examples: Iterable[Example]) -> list[int]:
    """The tokens of all documents, the end token behind each."""
    return [token for each in examples for token in (*(int(word[1:]) for word in (each.text or "").split()), END)]


def prepared(data: list[Example], crossing: bool = False, block: int = 8, fingerprint: str = "", **mixing: Any) -> Any:
    stage = Pretrain(block=block, cross_documents=crossing)
    examples = Examples.of(data, fingerprint, Mixing(**mixing))
    return stage.tunekit_prepare_data(examples, TOKENIZER, context(Path(), name="pretrain"))


def streamed(data: list[Example], crossing: bool = False, block: int = 8, **mixing: Any) -> StreamedBlocks:
    made = prepared(data, crossing, block, "data", streaming=True, **{"buffer": 5, **mixing})
    assert isinstance(made, StreamedBlocks)
    return made


def told(items: Iterable[Item]) -> list[list[tuple[str, list[int], list[float]]]]:
    """All that an item holds, in plain numbers."""
    return [
        [(each.where, list(map(int, each.ids)), list(map(float, each.weights))) for each in item.sequences]
        for item in items
    ]


def joined(items: Iterable[Item]) -> list[int]:
    return [int(token) for item in items for each in item.sequences for token in each.ids]


LENGTHS = [5, 7, 30, 1, 8, 15, 2, 2, 6, 23, 9]


@both_ways
@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), block=st.integers(2, 20))
def test_the_blocks_joined_are_the_documents_joined(crossing: bool, lengths: list[int], block: int) -> None:
    data, account = documents(lengths), Account()
    items = list(BlockEncoder(Encoder(TOKENIZER, Rules()), block, crossing).encode_all(data, account))
    whole = tokens_of(data)
    assert joined(items) == whole
    assert [item.tokens for item in items[:-1]] == [block] * (len(items) - 1)
    assert 1 <= items[-1].tokens <= block
    noted, sequences = account.source("rows.json"), [each for item in items for each in item.sequences]
    assert (noted.tokens, noted.sequences) == (len(whole), len(sequences))
    assert noted.supervised == sum(1 for each in sequences for weight in each.weights if weight)
    ends = [sum(length + 1 for length in lengths[: at + 1]) for at in range(len(lengths))]
    crossed = [(end - 1) // block > (end - 1 - length) // block for end, length in zip(ends, lengths, strict=True)]
    assert noted.split.count == sum(crossed)


def test_each_document_in_a_block_is_a_sequence_of_its_own() -> None:
    items = list(prepared(documents([3, 5, 2]), block=7))
    assert told(items) == [
        [("rows.json, row 1", [4, 4, 4, END], [0, 1, 1, 1]), ("rows.json, row 2", [5, 5, 5], [0, 1, 1])],
        [("rows.json, row 2", [5, 5, END], [0, 1, 1]), ("rows.json, row 3", [6, 6, END], [0, 1, 1])],
    ]  # fmt: skip


def test_crossing_documents_a_block_is_one_sequence() -> None:
    items = list(prepared(documents([3, 5, 2]), crossing=True, block=7))
    assert told(items) == [
        [("rows.json, row 1 and what follows it", [4, 4, 4, END, 5, 5, 5], [0, 1, 1, 1, 1, 1, 1])],
        [("rows.json, row 2 and what follows it", [5, 5, END, 6, 6, END], [0, 1, 1, 1, 1, 1])],
    ]


@both_ways
def test_blocks_do_not_depend_on_how_documents_are_divided_into_calls(crossing: bool) -> None:
    def cut(sizes: list[int]) -> Any:
        encoder, account, remaining = BlockEncoder(Encoder(TOKENIZER, Rules()), 8, crossing), Account(), iter(data)
        chunks = [list(islice(remaining, size)) for size in sizes]
        made = [item for chunk in chunks for items in encoder.encode(chunk, account) for item in items]
        return told(made), account.to_mapping()

    data = documents(LENGTHS)
    assert cut([11]) == cut([1, 4, 6]) == cut([1] * 11)


@both_ways
def test_kept_blocks_are_those_in_memory_and_are_taken_again(crossing: bool) -> None:
    data = documents(LENGTHS)
    memory, made, found = prepared(data, crossing), *(prepared(data, crossing, fingerprint="data") for _ in range(2))
    assert (type(memory), type(made), type(found)) == (Items, StoredItems, StoredItems)
    assert told(memory) == told(made) == told(found) == told(made[at] for at in range(len(made)))
    assert memory.account.to_mapping() == made.account.to_mapping() == found.account.to_mapping()
    assert made.folder == found.folder


def test_other_blocks_are_made_anew() -> None:
    data = documents(LENGTHS)
    folders = {prepared(data, *way, fingerprint="data").folder for way in ((False, 8), (True, 8), (False, 9))}
    assert len(folders) == 3


@both_ways
def test_a_pass_over_a_stream_gives_the_blocks_that_are_kept(crossing: bool) -> None:
    data = documents(LENGTHS)
    stream, kept = streamed(data, crossing, shuffle=False), prepared(data, crossing)
    assert told(stream) == told(kept)
    assert stream.account.to_mapping() == kept.account.to_mapping()


@both_ways
def test_a_stream_carries_its_last_block_on_with_the_next_pass(crossing: bool) -> None:
    data = documents(LENGTHS)
    whole = tokens_of(data)
    assert len(whole) % 8
    count = 3 * len(whole) // 8
    items = [item for item, _ in islice(streamed(data, crossing, shuffle=False).after(Position()), count)]
    assert {item.tokens for item in items} == {8}
    assert joined(items) == (3 * whole)[: 8 * count]


def test_a_stream_of_less_than_a_block_fills_it_with_several_passes() -> None:
    data = documents([2, 3])
    items = [item for item, _ in islice(streamed(data, block=16, shuffle=False).after(Position()), 2)]
    assert joined(items) == ([4, 4, END, 5, 5, 5, END] * 5)[:32]


@both_ways
def test_any_block_of_a_stream_is_found_again_with_the_account_there(crossing: bool) -> None:
    data, count = documents(LENGTHS), 40
    stream = streamed(data, crossing)
    drawn, accounts = [], []
    for item, position in islice(stream.after(Position()), count):
        accounts.append(deepcopy(stream.account.to_mapping()))
        drawn.append((item, json.loads(json.dumps(stream.state(position)))))
    expected = told(item for item, _ in drawn)
    for at in range(count - 1):
        again = streamed(data, crossing)
        behind = again.after(again.take_up_(drawn[at][1]))
        assert told([next(behind)[0]]) == expected[at + 1 : at + 2]
        assert again.account.to_mapping() == accounts[at + 1]
        assert told(item for item, _ in islice(behind, count - at - 2)) == expected[at + 2 :]


def test_streams_shuffle_documents_and_every_pass_has_each_token_once() -> None:
    data = documents(LENGTHS)
    whole = tokens_of(data)
    drawn = joined(item for item, _ in islice(streamed(data).after(Position()), len(whole)))  # 8 passes
    passes = [drawn[at : at + len(whole)] for at in range(0, len(drawn), len(whole))]
    assert [sorted(each) for each in passes] == [sorted(whole)] * 8
    assert len({tuple(each) for each in passes}) > 1


def test_a_row_without_a_word_is_told_and_leaves_no_gap() -> None:
    rows = documents([3, 4])
    empty = Example(3, "rows.json, row 3", text="", source="rows.json", optional=True)
    made = prepared([rows[0], empty, rows[1]], block=4)
    assert joined(made) == tokens_of(rows)
    assert made.account.source("rows.json").kept == 2


def test_conversations_are_refused() -> None:
    talk = Example(1, "rows.json, row 1", (Message("user", "t5"), Message("assistant", "t6")))
    with pytest.raises(Exception, match="is a conversation, and pretrain trains on a document"):
        prepared([talk])


def test_words_of_random_documents_come_back() -> None:
    data = word_examples(9, seed=3)
    assert joined(prepared(data)) == tokens_of(data)
