"""Several sources in one stream: exact shares, known ends, orders that follow from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekit.data import Interleaved, cache_folder, shuffle_buffer

counts = st.lists(st.integers(0, 20), min_size=1, max_size=4)


def interleaved(lengths: list[int], weights: list[float] | None = None, until: Any = "each") -> Interleaved[str]:
    """Sources `a0 a1 ...`, `b0 b1 ...`; a later pass writes capitals."""

    def start(name: str, length: int, again: bool) -> Iterator[str]:
        return (f"{name.upper() if again else name}{number}" for number in range(length))

    starts = [
        lambda again, name=name, length=length: start(name, length, again)
        for name, length in zip("abcd", lengths, strict=False)
    ]
    return Interleaved(starts, weights or [1.0] * len(lengths), until)


def test_sources_of_one_weight_take_turns() -> None:
    assert list(interleaved([3, 3])) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_shares_are_those_of_the_weights_all_along() -> None:
    taken = list(islice(interleaved([1000, 1000], [3.0, 1.0]), 400))
    for end in range(1, 401):
        share = sum(1 for item in taken[:end] if item[0] == "a")
        assert abs(share - 0.75 * end) < 1


@given(weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=4))
def test_no_source_is_ever_further_from_its_share_than_there_are_others(weights: list[float]) -> None:
    taken = list(islice(interleaved([500] * len(weights), weights, "last"), 100))
    for at, name in enumerate("abcd"[: len(weights)]):
        for end in range(1, 101):
            share = sum(1 for item in taken[:end] if item[0].lower() == name)
            assert abs(share - end * weights[at] / sum(weights)) <= len(weights)


@given(lengths=counts)
def test_until_each_reads_every_source_once_and_in_its_order(lengths: list[int]) -> None:
    taken = list(interleaved(lengths))
    for name, length in zip("abcd", lengths, strict=False):
        assert [item for item in taken if item[0] == name] == [f"{name}{number}" for number in range(length)]
    assert len(taken) == sum(lengths)


def test_until_the_first_has_ended_no_source_starts_again() -> None:
    assert list(interleaved([2, 5], until="first")) == ["a0", "b0", "a1", "b1"]


def test_until_the_last_has_ended_the_others_start_again_and_are_told_so() -> None:
    assert list(interleaved([1, 3], until="last")) == ["a0", "b0", "A0", "b1", "A0", "b2", "A0"]


@given(lengths=counts, until=st.sampled_from(["first", "last", "each"]))
def test_every_stream_ends(lengths: list[int], until: str) -> None:
    taken = list(islice(interleaved(lengths, until=until), 1000))
    assert len(taken) <= (max(lengths) + 1) * len(lengths)


def test_a_source_without_an_item_does_not_hold_the_others_up() -> None:
    assert list(interleaved([0, 3])) == ["b0", "b1", "b2"]
    assert list(interleaved([0, 3], until="last")) == ["b0", "b1", "b2"]
    assert list(interleaved([0, 3], until="first")) == []


def test_a_stream_can_be_taken_again() -> None:
    stream = interleaved([3, 5], [1.0, 2.0])
    assert list(stream) == list(stream)


@given(count=st.integers(0, 60), size=st.integers(1, 70))
def test_a_buffer_loses_nothing_and_repeats_nothing(count: int, size: int) -> None:
    assert sorted(shuffle_buffer(range(count), size, "seed")) == list(range(count))


@given(count=st.integers(0, 60), size=st.integers(1, 20))
def test_nothing_comes_earlier_than_the_buffer_allows(count: int, size: int) -> None:
    assert all(item < at + size for at, item in enumerate(shuffle_buffer(range(count), size, "seed")))


def test_a_buffer_shuffles_as_its_seed_says() -> None:
    first, same, other = (list(shuffle_buffer(range(50), 10, seed)) for seed in ("1", "1", "2"))
    assert first == same != other
    assert first != list(range(50))


def test_a_buffer_as_large_as_the_stream_shuffles_all_of_it() -> None:
    places = [list(shuffle_buffer(range(40), 40, str(seed))).index(0) for seed in range(200)]
    assert min(places) < 4
    assert max(places) > 35
    assert sum(places) / 200 == pytest.approx(19.5, abs=3)


def test_a_buffer_reads_no_further_than_it_must() -> None:
    read: list[int] = []
    stream = shuffle_buffer((read.append(number) or number for number in range(1000)), 10, "seed")  # type: ignore[func-returns-value]
    next(stream)
    assert len(read) == 11


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path))
    assert cache_folder("data") == tmp_path / "data"
    monkeypatch.setenv("TUNEKIT_CACHE", "~/kept")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("data") == tmp_path / "kept" / "data"
    monkeypatch.delenv("TUNEKIT_CACHE")
    assert cache_folder("data").parent.name == "tunekit"
