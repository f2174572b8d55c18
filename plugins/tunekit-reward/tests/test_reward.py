"""Reward models, from preferences to a value head that tells good answers from bad ones."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

import tunekit as tk
from tunekit.errors import DataError, TunekitError
from tunekit.testing import conversations, preferences, save_tiny_model, stage_context, tiny_bundle
from tunekit.values import Event, Examples, Message
from tunekit_lora import Lora
from tunekit_reward import Reward
from tunekit_reward.scoring import score
from tunekit_train import AdamW


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "all weights"])
def test_training_raises_margin_and_accuracy(adapter: bool, tmp_path: Path) -> None:
    events: list[Event] = []
    stage = Reward(epochs=30, learning_rate=2e-3, batch={"rows": 8})
    plugins = (stage, AdamW(), *([Lora(rank=8)] if adapter else []))
    context = stage_context(*plugins, folder=tmp_path, watch=events.append)
    bundle = tiny_bundle()
    if adapter:
        bundle = context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context)
    data = context.calls.own("tunekit_prepare_data", data=preferences(), tokenizer=bundle.tokenizer, context=context)
    result = context.calls.own("tunekit_train_stage", bundle=bundle, data=data, context=context)
    steps = [event.metrics for event in events if event.kind == "step"]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[0]["accuracy"] == 0.5
    assert steps[-1]["margin"] > 1
    assert steps[-1]["accuracy"] == 1
    (saved,) = (artefact.path for artefact in result.artefacts if artefact.kind in {"adapter", "model"})
    assert (saved / "value_head.safetensors").is_file()


def test_a_margin_weight_is_refused_where_no_row_gives_a_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    rows, stage = preferences(), Reward(margin_weight=2.0)
    data = Examples.of(rows, "margins")
    context = stage_context(stage, folder=tmp_path)
    with pytest.raises(DataError, match="margin_weight: is 2, and no row of the data gives a margin"):
        context.calls.own("tunekit_prepare_data", data=data, tokenizer=tiny_bundle().tokenizer, context=context)
    data = Examples.of((replace(row, margin=0.5) for row in rows), "with margins")
    context.calls.own("tunekit_prepare_data", data=data, tokenizer=tiny_bundle().tokenizer, context=context)


def test_data_without_pairs_is_refused(tmp_path: Path) -> None:
    context = stage_context(Reward(), folder=tmp_path)
    tokenizer = tiny_bundle().tokenizer
    with pytest.raises(DataError, match="trains on a pair of a chosen and a rejected answer"):
        context.calls.own("tunekit_prepare_data", data=conversations(), tokenizer=tokenizer, context=context)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tk.Run:
    """A reward model of two answers to each question: the one that says yes is the better."""
    folder = tmp_path_factory.mktemp("reward")
    rows = [
        {"prompt": question, "chosen": "yes, it is.", "rejected": "no, it is not."}
        for question in ("Is it the river?", "Is it plain?", "Is it the lazy dog?", "Is it a long one?")
    ]
    stage = Reward(epochs=20, learning_rate=5e-3)
    pipeline = tk.Pipeline(str(save_tiny_model(folder / "tiny")), rows, [Lora(rank=4)], [stage])
    return pipeline.run(folder / "run")


def asked(question: str, answer: str) -> list[Message]:
    return [Message("user", question), Message("assistant", answer)]


def test_a_run_values_conversations_and_texts_in_their_order(run: tk.Run) -> None:
    good, bad = asked("Is it the sea?", "yes, it is."), asked("Is it the sea?", "no, it is not.")
    first, second = run.score([good, bad])
    assert first > second + 0.5
    (plain,) = run.score(["plain text"])
    assert run.score([bad, "plain text", good]) == pytest.approx([second, plain, first], rel=1e-2)  # in bf16
    assert run.score([]) == []


def test_values_are_those_the_stage_was_trained_by(run: tk.Run) -> None:
    """After the last step, chosen and rejected rewards of the training data lie about where the last steps had them."""
    values = run.score([asked("Is it plain?", answer) for answer in ("yes, it is.", "no, it is not.")])
    last = [line for line in run.metrics if "reward_chosen" in line][-1]
    assert values[0] == pytest.approx(last["reward_chosen"], abs=0.5)
    assert values[1] == pytest.approx(last["reward_rejected"], abs=0.5)


def test_a_run_opened_again_values_alike(run: tk.Run) -> None:
    texts = [asked("Is it the sea?", "yes, it is."), "plain text"]
    assert tk.open_run(run.folder).score(texts) == pytest.approx(run.score(texts), abs=1e-5)


def test_what_cannot_be_valued_is_refused(run: tk.Run) -> None:
    with pytest.raises(TunekitError, match="text 2 has no tokens"):
        run.score(["plain", ""])
    with pytest.raises(DataError, match="text 1"):
        run.score([[Message("user", "Is it?")]])


def test_a_model_without_a_value_head_values_nothing() -> None:
    with pytest.raises(TunekitError, match="has no value head"):
        score(tiny_bundle(), ["plain"], Reward().rules())
