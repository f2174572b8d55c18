"""Data that is read while it is trained on: its order, its passes, and the way back to any micro-batch."""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.errors import DataError, InterruptedRunError, PlanError
from tunekit.values import Account, Example, Examples, Kind, Mixing
from tunekit_train import streaming
from tunekit_train.feeding import Room, StreamedBatches
from tunekit_train.memory import PeakMemory
from tunekit_train.preparing import prepare_with
from tunekit_train.streaming import Position, StreamedItems
from tunekit_train.testing import CrossEntropy, WordEncoder, context, word_examples

COUNT = 23


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are smaller than the data, and than its parts."""
    monkeypatch.setattr(streaming, "CHUNK", 4)


def stream(
    examples: list[Example] | None = None, encoder: WordEncoder | None = None, seed: int = 7, **mixing: Any
) -> StreamedItems:
    mixing = {"buffer": 5, **mixing}
    data = Examples.of(word_examples(COUNT) if examples is None else examples, "data", Mixing(streaming=True, **mixing))
    kinds: frozenset[Kind] = frozenset({"text"})
    made = prepare_with(encoder or WordEncoder(max_length=8), data, kinds, context(Path(), seed=seed))
    assert isinstance(made, StreamedItems)
    return made


def told(items: Any) -> list[tuple[int, list[int]]]:
    return [(sequence.row, list(sequence.ids)) for item in items for sequence in item.sequences]


def drawn(items: StreamedItems, count: int, position: Position | None = None) -> list[tuple[int, list[int]]]:
    return told(item for item, _ in islice(items.after(position or Position()), count))


def per_pass() -> int:
    return len(list(WordEncoder(max_length=8).encode_all(word_examples(COUNT), Account())))


def test_each_pass_holds_every_item_once_in_another_order() -> None:
    count = per_pass()
    first, second = drawn(stream(), 2 * count)[:count], drawn(stream(), 2 * count)[count:]
    everything = sorted(told(WordEncoder(max_length=8).encode_all(word_examples(COUNT), Account())))
    assert sorted(first) == sorted(second) == everything
    assert first != second
    assert first != everything


def test_the_seed_decides_the_order() -> None:
    assert drawn(stream(seed=1), 20) == drawn(stream(seed=1), 20)
    assert drawn(stream(seed=1), 20) != drawn(stream(seed=2), 20)


def test_without_shuffling_every_pass_is_in_the_order_of_the_data() -> None:
    count = per_pass()
    rows = [row for row, _ in drawn(stream(shuffle=False), 2 * count)]
    assert rows[:count] == rows[count:] == sorted(rows[:count])


def test_the_buffer_is_how_far_the_order_is_mixed() -> None:
    def farthest(buffer: int) -> int:
        order = [row for row, _ in drawn(stream(word_examples(200, longest=8), buffer=buffer), 200)]
        return max(row - 1 - at for at, row in enumerate(order))

    assert farthest(1) == 0
    assert 2 <= farthest(5) <= 4
    assert 25 <= farthest(50) <= 49


def test_little_is_encoded_ahead() -> None:
    encoder = WordEncoder()
    drawn(stream(encoder=encoder), 3)
    assert len(encoder.encoded) == streaming.CHUNK


@pytest.mark.parametrize("shuffle", [True, False])
def test_from_every_position_the_stream_goes_on_as_it_would_have(shuffle: bool) -> None:
    count = 2 * per_pass() + 5
    items = stream(shuffle=shuffle)
    whole = list(islice(items.after(Position()), count))
    rows, ends = told(item for item, _ in whole), [behind for _, behind in whole]
    for at, end in enumerate(ends):
        assert drawn(stream(shuffle=shuffle), count - at - 1, end) == rows[at + 1 :]


def test_what_is_behind_a_position_is_read_and_not_encoded_again() -> None:
    *_, (_, end) = islice(stream(shuffle=False).after(Position()), 20)
    encoder = WordEncoder(max_length=8)
    drawn(stream(encoder=encoder, shuffle=False), 1, end)
    assert end.examples >= 4
    assert min(encoder.encoded) == end.examples + 1


@pytest.mark.parametrize("size", [0, 20])
def test_micro_batches_go_on_from_a_checkpoint_and_the_account_with_them(size: int) -> None:
    rows, count = 3, 25
    first = stream()
    batches = StreamedBatches(first, Room(rows, size), Position())
    whole, accounts = [], []
    for number in range(count):
        whole.append(batches[number])
        accounts.append(first.account.to_mapping())
    assert whole[-1].position.passed > 0
    for at in range(count - 1):
        state = json.loads(json.dumps(first.state(whole[at].position)))
        again = stream()
        resumed = StreamedBatches(again, Room(rows, size), again.take_up_(state))
        for number in range(at + 1, count):
            assert told(resumed[number].batch.items) == told(whole[number].batch.items)
            assert again.account.to_mapping() == json.loads(json.dumps(accounts[number]))


def test_a_stream_goes_on_where_the_path_of_its_data_is_written_otherwise() -> None:
    first = stream()
    *_, (_, behind) = islice(first.after(Position()), 10)
    elsewhere = [replace(example, source="/data/rows.json") for example in word_examples(COUNT)]
    again = stream(elsewhere)
    assert again.fingerprint == first.fingerprint
    position = again.take_up_(json.loads(json.dumps(first.state(behind))))
    assert drawn(again, per_pass() - 10, position) == drawn(stream(), per_pass())[10:]
    (account,) = again.account.sources.values()
    assert (account.name, account.rows, account.sequences) == ("/data/rows.json", COUNT, per_pass())


def test_a_bin_takes_whole_items_until_the_next_does_not_fit() -> None:
    count = per_pass()
    batches = StreamedBatches(stream(), Room(2, 20), Position())
    taken = [batches[number].batch.items for number in range(10)]
    assert told(item for items in taken for item in items) == drawn(stream(), sum(map(len, taken)))
    assert all(sum(item.tokens for item in items) <= 40 for items in taken)
    assert sum(map(len, taken)) > count
    assert max(map(len, taken)) > 2


def test_an_item_longer_than_a_bin_has_one_of_its_own() -> None:
    batches = StreamedBatches(stream(encoder=WordEncoder()), Room(1, 4), Position())
    assert [len(batches[number].batch.items) for number in range(COUNT)] == [1] * COUNT


def test_the_account_tells_the_first_pass_alone() -> None:
    items = stream()
    drawn(items, 3 * per_pass())
    account = items.account.sources["rows.json"]
    assert (account.rows, account.sequences) == (COUNT, per_pass())


def with_a_bad_row(optional: bool) -> list[Example]:
    examples = word_examples(COUNT)
    examples[10] = Example(11, "rows.json, row 11", text="", source="rows.json", optional=optional)
    return examples


def test_the_first_row_that_cannot_be_used_stops_the_stream() -> None:
    with pytest.raises(DataError, match=r"rows.json, row 11: has no word; write one"):
        drawn(stream(with_a_bad_row(False)), 2 * COUNT)


def test_a_row_that_cannot_be_used_is_counted_where_it_may_be_left_out() -> None:
    items = stream(with_a_bad_row(True))
    assert 11 not in {row for row, _ in drawn(items, 2 * per_pass())}
    assert items.account.sources["rows.json"].left_out["has no word"].count == 1
    assert items.account.kept == COUNT - 1


def reading_a_bad_row(account: Account) -> Iterator[Example]:
    for example in word_examples(COUNT):
        if example.row == 11:
            account.leave_out("rows.json", "rows.json, line 11", "is not JSON", "mend it")
            continue
        yield example


def test_a_row_that_cannot_be_read_stops_the_stream() -> None:
    items = stream(shuffle=False)
    items.data = replace(items.data, start=reading_a_bad_row)
    with pytest.raises(DataError, match=r"rows.json, line 11: is not JSON; mend it"):
        drawn(items, COUNT)


def test_a_stream_without_an_item_says_so_instead_of_starting_for_ever() -> None:
    empty = [Example(1, "rows.json, row 1", text="", source="rows.json", optional=True)]
    with pytest.raises(DataError, match=r"rows.json: holds no example to train on"):
        drawn(stream(empty), 1)


OPTIONS: dict[str, Any] = {"steps": 9, "learning_rate": 1e-2, "batch": {"rows": 3, "accumulation": 2}}


def test_the_engine_trains_on_a_stream_as_on_the_same_items_in_memory(run_training: Callable[..., Any]) -> None:
    streamed = run_training(items=stream(shuffle=False), **OPTIONS)
    items = [item for item, _ in islice(stream(shuffle=False).after(Position()), 54)]
    from tunekit_train import Items

    kept = run_training(items=Items(items, mixing=Mixing(shuffle=False)), **OPTIONS)
    assert streamed.values("loss") == kept.values("loss")
    facts = streamed.result.facts
    assert (facts["steps_per_epoch"], facts["items_trained_on"], facts["micro_batches"]) == (None, None, 18)
    for name, value in kept.weights.items():
        assert torch.equal(value, streamed.weights[name])


def test_what_was_being_read_is_closed_when_the_training_ends(run_training: Callable[..., Any]) -> None:
    closed = []

    def start(account: Account) -> Iterator[Example]:
        try:
            yield from word_examples(COUNT)
        finally:
            closed.append(True)

    items = stream()
    items.data = replace(items.data, start=start)
    gc.disable()
    try:
        run_training(items=items, **{**OPTIONS, "steps": 1})
        assert closed
    finally:
        gc.enable()


def test_a_packed_stream_fills_its_bins(run_training: Callable[..., Any]) -> None:
    batch = {"rows": 3, "max_length": 40, "packing": "greedy"}
    trained = run_training(items=stream(), **{**OPTIONS, "batch": batch})
    assert trained.result.facts["packing_efficiency"] == pytest.approx(sum(trained.values("tokens")) / (9 * 120))
    assert trained.result.facts["packing_efficiency"] > 0.75


class CtrlC(CrossEntropy):
    """The user presses Ctrl-C in the third step."""

    calls = 0

    def sums(self, *given: Any) -> Any:
        self.calls += 1
        if self.calls == 5:
            os.kill(os.getpid(), 2)
        return super().sums(*given)


def test_other_data_than_the_checkpoint_was_trained_on_is_refused(
    run_training: Callable[..., Any], tmp_path: Path
) -> None:
    run = partial(run_training, folder=tmp_path / "run", **OPTIONS)
    with pytest.raises(InterruptedRunError, match="step 3 is saved"):
        run(items=stream(), objective=CtrlC())
    other = stream()
    other.fingerprint = "other data"
    with pytest.raises(DataError, match=r"stages.0.sft.data: is not what step 3 was trained on.*give it the same data"):
        run(items=other, resume=True)
    assert run(items=stream(), resume=True).steps("step") == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"steps": None}, "steps: is not set"),
        ({"evaluate": {"share": 0.1}}, "evaluate.share: needs to know all rows"),
        ({"batch": {"by_length": True}}, "batch.by_length: sorts all rows"),
        ({"batch": {"packing": "best_fit"}}, "batch.packing: is best_fit, which sorts all rows"),
    ],
)
def test_what_needs_a_length_is_refused_by_the_engine_as_well(
    options: dict[str, Any], where: str, run_training: Callable[..., Any]
) -> None:
    with pytest.raises(PlanError, match=f"stages.0.sft.{where}"):
        run_training(items=stream(), **{**OPTIONS, **options})


def test_memory_stays_small_however_long_the_data_is(tmp_path: Path) -> None:
    path, text = tmp_path / "rows.jsonl", " ".join(f"t{number % 100 + 3}" for number in range(400))
    with path.open("w") as file:
        for row in range(16_000):
            file.write(json.dumps({"text": f"t{row % 100 + 3} {text}"}) + "\n")
    assert path.stat().st_size > 24 << 20

    def start(account: Account) -> Iterator[Example]:
        with path.open() as file:
            for row, line in enumerate(file, 1):
                yield Example(row, f"rows.jsonl, row {row}", text=json.loads(line)["text"], source="rows.jsonl")

    items = stream(encoder=WordEncoder())
    items.data = Examples(start, "data", Mixing(streaming=True, buffer=100))
    drawn(items, 500)
    peak = PeakMemory("cpu")
    before, rows = peak.read(), Counter[int]()
    rows.update(item.sequences[0].row for item, _ in islice(items.after(Position()), 20_000))
    assert max(rows.values()) == 2
    assert len(rows) == 16_000
    assert not peak.reset or peak.read() - before < 6 << 20
