"""Items written to a folder and read again."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunekit.values import Account, Item, Mixing, TokenSequence
from tunekit_train.layout import lay_end_to_end
from tunekit_train.memory import PeakMemory
from tunekit_train.store import DamagedStoreError, StoredItems, write_items
from tunekit_train.testing import random_items
from tunekit_train.whereabouts import Whereabouts


def written(folder: Path, items: Any, account: Account | None = None) -> StoredItems:
    folder.mkdir(exist_ok=True)
    write_items(folder, items, account or Account())
    return StoredItems(folder)


def plain(items: Any) -> list[Any]:
    """Items as plain Python values."""
    return [
        (
            item.label,
            item.margin,
            [([*map(int, s.ids)], [*map(float, s.weights)], s.row, s.where, s.cut) for s in item.sequences],
        )
        for item in items
    ]


def some_items() -> list[Item]:
    singles = [item.sequences[0] for item in random_items(9)]
    pair = Item((singles[0], singles[1]), margin=0.3)
    group = Item(tuple(singles[2:6]))
    empty = Item((TokenSequence([], [], 5, "empty.txt"),))
    odd = Item((TokenSequence(np.array([7, 8]), (0.1, 1 / 3), 12, "a12/b.json, row 12", cut=3),), label=False)
    return [pair, group, empty, odd, Item((singles[6],), label=True), Item(()), Item((singles[7], singles[8]))]


def test_items_come_back_equal_by_number_by_slice_and_in_a_pass(tmp_path: Path) -> None:
    items = some_items()
    stored = written(tmp_path / "store", items)
    assert plain(stored) == plain(items)
    assert plain(stored[at] for at in range(len(items))) == plain(items)
    assert plain(stored[1:6:2]) == plain(items[1:6:2])
    assert plain([stored[-1]]) == plain(items[-1:])
    assert stored.lengths.tolist() == [item.tokens for item in items]
    assert (len(stored), stored.size) == (7, 7)
    with pytest.raises(IndexError, match="item 7 of 7"):
        stored[7]


def test_more_items_than_are_written_at_a_time_come_back_equal(tmp_path: Path) -> None:
    items = random_items(3000)
    stored = written(tmp_path / "store", iter(items))
    assert plain(stored) == plain(items)
    assert plain([stored[1023], stored[1024], stored[2999]]) == plain([items[1023], items[1024], items[2999]])


def test_torch_takes_the_arrays_without_a_warning_and_makes_the_same_batch(tmp_path: Path) -> None:
    items = random_items(8)
    stored = written(tmp_path / "store", items)
    left, right = (lay_end_to_end([item.sequences[0] for item in each]) for each in (items, stored))
    for name, value in vars(left).items():
        assert torch.equal(value, getattr(right, name)) if torch.is_tensor(value) else value == getattr(right, name)


def test_what_a_reader_does_to_an_array_does_not_reach_the_store(tmp_path: Path) -> None:
    stored = written(tmp_path / "store", random_items(1))
    before = plain(stored)
    ids: Any = stored[0].sequences[0].ids
    ids[:] = 0
    assert plain(stored) == before


def test_nothing_at_all_can_be_stored(tmp_path: Path) -> None:
    stored = written(tmp_path / "store", [])
    assert (list(stored), len(stored), stored.lengths.tolist()) == ([], 0, [])


def test_the_account_is_kept_as_it_is_after_the_last_item(tmp_path: Path) -> None:
    account = Account()

    def items() -> Iterator[Item]:
        for item in random_items(3):
            account.source("rows.json").rows += 1
            account.source("rows.json").lengths[item.tokens] += 1
            yield item
        account.leave_out("rows.json", "row 4", "is empty", optional=True)

    assert written(tmp_path / "store", items(), account).account.to_mapping() == account.to_mapping()
    assert account.source("rows.json").rows == 3


def test_the_fingerprint_changes_with_a_token_a_weight_and_a_label(tmp_path: Path) -> None:
    def fingerprint(name: str, ids: list[int], weights: list[float], label: bool | None = None) -> str:
        item = Item((TokenSequence(ids, weights, 1, name),), label)
        return written(tmp_path / name, [item]).fingerprint

    first = fingerprint("a", [5, 6], [0.0, 1.0])
    assert fingerprint("b", [5, 6], [0.0, 1.0]) == first
    others = [fingerprint("c", [5, 7], [0.0, 1.0]), fingerprint("d", [5, 6], [0.0, 0.5]),
              fingerprint("e", [5, 6], [0.0, 1.0], True)]  # fmt: skip
    assert len({first, *others}) == 4


def test_weights_take_little_room(tmp_path: Path) -> None:
    item = Item((TokenSequence(range(200), [0.0] * 80 + [1.0] * 120, 1, "rows.json, row 1"),))
    written(tmp_path / "store", [item] * 1000)
    assert sum(file.stat().st_size for file in (tmp_path / "store").iterdir()) < 5 * 200_000


@pytest.mark.parametrize(
    "harm", ["shortened", "missing", "no manifest", "half a manifest", "another version", "another account"]
)
def test_a_damaged_folder_is_told_from_a_whole_one(harm: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    written(folder, random_items(4))
    manifest = folder / "manifest.json"
    if harm == "shortened":
        (folder / "ids").write_bytes((folder / "ids").read_bytes()[:-4])
    elif harm == "missing":
        (folder / "spans").unlink()
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "half a manifest":
        manifest.write_text(manifest.read_text()[:30])
    else:
        other = {"version": 0} if harm == "another version" else {"account": {"rows.json": {"lines": 4}}}
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **other}))
    with pytest.raises(DamagedStoreError):
        StoredItems(folder)


def test_a_folder_that_is_not_there_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StoredItems(tmp_path / "nothing")


def test_memory_stays_small_whatever_is_written_and_read(tmp_path: Path) -> None:
    sequence = TokenSequence([7] * 2000, [0.0, 1.0] * 1000, 1, "rows.json, row 1")
    tracemalloc.start()
    try:
        stored = written(tmp_path / "store", (Item((sequence,)) for _ in range(5000)))  # 160 MB
        peak = PeakMemory("cpu")
        before = peak.read()
        assert sum(item.tokens for item in stored) == 10_000_000
        for at in range(0, 5000, 7):
            stored[at]
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
        assert not peak.reset or peak.read() - before < 40 << 20
    finally:
        tracemalloc.stop()


def test_the_mixing_is_that_of_the_run_and_not_of_the_store(tmp_path: Path) -> None:
    written(tmp_path / "store", random_items(2))
    assert StoredItems(tmp_path / "store", Mixing(shuffle=False)).mixing.shuffle is False


@given(st.text(max_size=30) | st.sampled_from(["a 007", "x 5 y 17", "17", "", "5, row 5 (2)"]), st.integers(0, 10**20))
def test_every_place_is_told_as_it_was(where: str, row: int) -> None:
    places = Whereabouts()
    kept = [places.add(text, row) for text in (where, f"{where} {row}", f"{row} {where}")]
    again = Whereabouts(places.texts)
    assert [again.text(*each) for each in kept] == [where, f"{where} {row}", f"{row} {where}"]


def test_places_take_no_room_by_the_row() -> None:
    places = Whereabouts()
    for row in range(1, 500):
        places.add(f"a.json, row {row}", row)
        places.add(f"b.json, line {row + 7}", row)
        places.add(f"c.json, row {row}, part 2", row)
    assert len(places.texts) <= 4
