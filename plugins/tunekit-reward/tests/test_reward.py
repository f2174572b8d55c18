"""Reward models, from preferences to a value head that tells good answers from bad ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tunekit.errors import DataError
from tunekit.testing import conversations, preferences, stage_context, tiny_bundle
from tunekit.values import Event
from tunekit_lora import Lora
from tunekit_reward import Reward
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


def test_data_without_pairs_is_refused(tmp_path: Path) -> None:
    context = stage_context(Reward(), folder=tmp_path)
    tokenizer = tiny_bundle().tokenizer
    with pytest.raises(DataError, match="trains on a pair of a chosen and a rejected answer"):
        context.calls.own("tunekit_prepare_data", data=conversations(), tokenizer=tokenizer, context=context)
