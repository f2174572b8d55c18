"""Prepared data between runs: found again, never half, never stale, never too much."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import TunekitError
from tunekit.values import Account, Item
from tunekit_train.cache import ABANDONED, DataCache
from tunekit_train.locks import in_use, is_idle
from tunekit_train.testing import random_items

KEY = "a" * 64


def row_numbers(items: Any) -> list[int]:
    return [item.sequences[0].row for item in items]


def make(cache: DataCache, key: str = KEY, count: int = 5) -> None:
    """Store an entry that nobody uses afterwards."""
    cache.make(key, random_items(count), Account())
    gc.collect()


def test_what_was_made_is_found(tmp_path: Path) -> None:
    cache = DataCache(tmp_path / "cache")
    assert cache.find(KEY) is None
    assert row_numbers(cache.make(KEY, random_items(5), Account())) == [1, 2, 3, 4, 5]
    found = cache.find(KEY)
    assert found is not None
    assert row_numbers(found) == [1, 2, 3, 4, 5]
    assert cache.find("b" * 64) is None


def test_data_with_problems_is_read_and_not_found_again(tmp_path: Path) -> None:
    cache, account = DataCache(tmp_path), Account()
    account.leave_out("rows.json", "row 9", "is empty")
    made = cache.make(KEY, random_items(5), account)
    assert row_numbers(made) == [1, 2, 3, 4, 5]
    assert made.account.problems
    assert cache.find(KEY) is None
    del made
    gc.collect()
    assert not list(tmp_path.iterdir())


def broken() -> Iterator[Item]:
    yield from random_items(5)
    raise ValueError("the file ends in the middle of a row")


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the file ends"):
        DataCache(tmp_path).make(KEY, broken(), Account())
    assert not list(tmp_path.iterdir())


def test_a_damaged_entry_is_made_anew(tmp_path: Path) -> None:
    cache = DataCache(tmp_path)
    make(cache)
    (tmp_path / KEY / "ids").write_bytes(b"")
    assert cache.find(KEY) is None
    assert not list(tmp_path.iterdir())
    make(cache)
    assert cache.find(KEY) is not None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = DataCache(tmp_path)
    for age, key in ((30, "a"), (20, "b"), (10, "c")):
        make(cache, key)
        os.utime(tmp_path / key / "manifest.json", (time.time() - age,) * 2)
    size = sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    cache.find("a")  # used again
    gc.collect()
    DataCache(tmp_path, limit=3 * size + 10).make("d", random_items(5), Account())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_an_entry_that_another_process_takes_away_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path.glob

    def with_one_that_is_gone(folder: Path, pattern: str) -> Iterator[Path]:
        if pattern.endswith("manifest.json"):
            yield folder / "gone" / "manifest.json"
        yield from listed(folder, pattern)

    make(DataCache(tmp_path), "a")
    monkeypatch.setattr(Path, "glob", with_one_that_is_gone)
    make(DataCache(tmp_path, limit=1), "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_is_in_use_stays_whatever_its_size(tmp_path: Path) -> None:
    cache = DataCache(tmp_path, limit=1)
    first = cache.make("a", random_items(5), Account())
    second = cache.make("b", random_items(5), Account())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert row_numbers(first) == row_numbers(second)
    del first, second
    gc.collect()
    third = cache.make("c", random_items(5), Account())
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert len(third) == 5


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TunekitError, match=r"prepared data cannot be kept in .*set TUNEKIT_CACHE to a folder that can"):
        DataCache(tmp_path / "file" / "cache").make(KEY, random_items(5), Account())


def slow(folder: Path, started: Any, go_on: Any) -> None:
    def items() -> Iterator[Item]:
        yield from random_items(5)
        started.set()
        go_on.wait(30)

    made = DataCache(folder).make(KEY, items(), Account())
    assert row_numbers(made) == [1, 2, 3, 4, 5]


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Another process in the middle of making the same entry."""
    processes = multiprocessing.get_context("fork")
    started, go_on = processes.Event(), processes.Event()
    process = processes.Process(target=slow, args=(tmp_path, started, go_on))
    process.start()
    assert started.wait(30)
    yield process, go_on
    process.kill()
    process.join()


def test_two_processes_make_one_entry(other: Any, tmp_path: Path) -> None:
    process, go_on = other
    os.utime(next(tmp_path.glob(".partial-*")), (0, 0))  # old, and still in use
    make(DataCache(tmp_path))
    go_on.set()
    process.join(30)
    assert process.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == [KEY]


def test_what_a_killed_process_leaves_is_never_found_and_cleared_later(other: Any, tmp_path: Path) -> None:
    process, _ = other
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cache, (left,) = DataCache(tmp_path), tmp_path.glob(".partial-*")
    assert cache.find(KEY) is None
    make(cache, "b")
    assert left.exists(), "it might have just been begun"
    os.utime(left, (time.time() - 2 * ABANDONED,) * 2)
    make(cache, "c")
    assert not left.exists()


def test_a_folder_is_idle_once_nobody_uses_it(tmp_path: Path) -> None:
    with in_use(tmp_path), in_use(tmp_path):
        assert not is_idle(tmp_path)
    assert is_idle(tmp_path)
    assert not is_idle(tmp_path, rest=60)
    assert not is_idle(tmp_path / "nothing")
