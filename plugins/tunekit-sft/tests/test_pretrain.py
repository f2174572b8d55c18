"""Training on documents: it learns, tells perplexity, and takes data that is streamed or hardly there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import InterruptedRunError
from tunekit.values import Event, Example, Examples, Mixing, StageResult
from tunekit_sft import Pretrain
from tunekit_train.testing import bundle, context, tiny_llama, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for each test."""
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))


def counting(count: int) -> list[Example]:
    """Documents that count on from some number."""
    return [
        Example(row, f"rows.json, row {row}", text=" ".join(f"t{5 + (row + at) % 20}" for at in range(6 + row % 7)))
        for row in range(1, count + 1)
    ]


def train(
    stage: Pretrain, data: list[Example], folder: Path, events: list[Event] | None = None, **options: Any
) -> StageResult:
    mixing = Mixing(streaming=options.pop("streaming", False), buffer=10)
    surroundings = context(folder, events, name="pretrain", **options)
    items = stage.tunekit_prepare_data(Examples.of(data, "data", mixing), tiny_tokenizer(), surroundings)
    return stage.tunekit_train_stage(bundle(tiny_llama()), items, surroundings)


@pytest.mark.parametrize("crossing", [False, True])
def test_perplexity_on_held_out_blocks_falls_and_closes_the_stage(crossing: bool, tmp_path: Path) -> None:
    events: list[Event] = []
    stage = Pretrain(
        epochs=15, learning_rate=1e-2, block=24, cross_documents=crossing, evaluate={"share": 0.2}, schedule={}
    )
    metrics = train(stage, counting(40), tmp_path, events).metrics
    told = [event.metrics["perplexity"] for event in events if event.kind == "evaluated"]
    assert told[-1] < 0.2 * told[0]
    assert metrics["perplexity"] == told[-1] == pytest.approx(math.exp(metrics["eval_loss"]))


def test_a_last_block_of_one_token_does_no_harm(tmp_path: Path) -> None:
    """16 tokens and one: the last block has nothing to learn, and a step of its own."""
    data = [Example(1, "rows.json, row 1", text=" ".join(f"t{at}" for at in range(10, 26)))]
    events: list[Event] = []
    result = train(Pretrain(epochs=2, block=8, batch={"rows": 1}), data, tmp_path, events)
    assert result.facts["items_trained_on"] == 3
    assert [event.step for event in events if event.kind == "step"] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for event in events for value in event.metrics.values())


def test_a_stream_that_was_interrupted_reaches_the_same_losses(tmp_path: Path) -> None:
    def losses(events: list[Event]) -> list[float]:
        return [event.metrics["loss"] for event in events if event.kind == "step"]

    def stop(event: Event) -> None:
        if (event.kind, event.step) == ("step", 7):
            raise KeyboardInterrupt

    stage = Pretrain(steps=12, block=16, batch={"rows": 2}, checkpoint={"every": 3})
    whole: list[Event] = []
    train(stage, counting(9), tmp_path / "whole", whole, streaming=True)
    with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
        train(stage, counting(9), tmp_path / "stopped", streaming=True, emit=stop)
    rest: list[Event] = []
    train(stage, counting(9), tmp_path / "stopped", rest, streaming=True, resume=True)
    assert 0 < len(losses(rest)) < 12
    assert losses(rest) == losses(whole)[-len(losses(rest)) :]
