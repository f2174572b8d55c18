"""The four stages, from preferences to a trained model, and the options they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tunekit.errors import DataError
from tunekit.testing import conversations, preferences, stage_context, tiny_bundle
from tunekit.values import Event, Examples
from tunekit_dpo import Cpo, Dpo, Orpo, Simpo
from tunekit_lora import Lora
from tunekit_train import AdamW


def trained(stage: Any, folder: Path, adapter: bool = True) -> list[dict[str, float]]:
    """The metrics of each step of training on the kit's pairs."""
    events: list[Event] = []
    context = stage_context(stage, AdamW(), *([Lora(rank=8)] if adapter else []), folder=folder, watch=events.append)
    bundle = tiny_bundle()
    if adapter:
        bundle = context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context)
    data = context.calls.own("tunekit_prepare_data", data=preferences(), tokenizer=bundle.tokenizer, context=context)
    context.calls.own("tunekit_train_stage", bundle=bundle, data=data, context=context)
    return [dict(event.metrics) for event in events if event.kind == "step"]


@pytest.mark.parametrize("stage", [Dpo, Orpo, Simpo, Cpo])
def test_training_raises_margin_and_accuracy(stage: type, tmp_path: Path) -> None:
    steps = trained(stage(epochs=40, learning_rate=1e-2, batch={"rows": 8}), tmp_path)
    first, last = steps[0], steps[-1]
    assert last["margin"] > first["margin"] + 0.03
    assert last["accuracy"] >= 0.75
    assert last["loss"] < first["loss"]


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "all weights"])
def test_a_fresh_policy_is_its_reference(adapter: bool, tmp_path: Path) -> None:
    first = trained(Dpo(steps=1), tmp_path, adapter)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["reward_chosen"] == pytest.approx(0, abs=1e-5)


def test_a_mixture_tells_each_of_its_losses(tmp_path: Path) -> None:
    first = trained(Dpo(steps=1, loss={"sigmoid": 0.8, "bco": 0.2}, sft_weight=1.0), tmp_path)[0]
    expected = 0.8 * first["sigmoid_loss"] + 0.2 * first["bco_loss"] + first["sft_loss"]
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    assert first["bco_loss"] == pytest.approx(2 * math.log(2), abs=1e-5)


def test_losses_that_couple_a_batch_say_so() -> None:
    assert Dpo(loss="aot").objective().couples_batch
    assert Dpo(loss={"aot_unpaired": 1.0, "sigmoid": 1.0}).objective().couples_batch
    assert not Dpo(loss={"bco": 1.0, "sigmoid": 1.0}).objective().couples_batch


def test_a_margin_weight_is_refused_where_no_row_gives_a_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    rows, stage = preferences(), Dpo(margin_weight=2.0)
    data = Examples.of(rows, "margins")
    context = stage_context(stage, folder=tmp_path)
    with pytest.raises(DataError, match="margin_weight: is 2, and no row of the data gives a margin"):
        context.calls.own("tunekit_prepare_data", data=data, tokenizer=tiny_bundle().tokenizer, context=context)
    data = Examples.of((replace(row, margin=0.5) for row in rows), "with margins")
    context.calls.own("tunekit_prepare_data", data=data, tokenizer=tiny_bundle().tokenizer, context=context)


@pytest.mark.parametrize(
    ("stage", "taken"), [(Dpo(steps=1), True), (Dpo(steps=1, loss="nca"), False), (Simpo(steps=1), False)]
)
def test_the_record_says_where_margins_go_unused(stage: Any, taken: bool, tmp_path: Path) -> None:
    context = stage_context(stage, AdamW(), folder=tmp_path)

    def facts(margin: float | None) -> Any:
        bundle, rows = tiny_bundle(), Examples.of(replace(row, margin=margin) for row in preferences())
        data = context.calls.own("tunekit_prepare_data", data=rows, tokenizer=bundle.tokenizer, context=context)
        return context.calls.own("tunekit_train_stage", bundle=bundle, data=data, context=context).facts

    assert ("margins" in facts(0.5)) is not taken
    assert "margins" not in facts(None)


@pytest.mark.parametrize("stage", [Dpo(), Orpo(), Simpo(), Cpo()], ids=repr)
def test_data_without_pairs_is_refused(stage: Any, tmp_path: Path) -> None:
    context = stage_context(stage, folder=tmp_path)
    tokenizer = tiny_bundle().tokenizer
    with pytest.raises(DataError, match="trains on a pair of a chosen and a rejected answer"):
        context.calls.own("tunekit_prepare_data", data=conversations(), tokenizer=tokenizer, context=context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "exo"}, "label_smoothing is 0, and loss exo needs it above 0"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing acts only with loss aot"),
        ({"loss": "nca", "divergence": "js"}, "divergence js does not go with loss nca"),
        ({"divergence_alpha": 0.2}, "divergence_alpha acts only with divergence alpha"),
        ({"discopop_temperature": 0.2}, "discopop_temperature acts only with loss discopop"),
        ({"bco_decay": 0.2}, "bco_decay acts only with loss bco"),
        ({"loss": "ipo", "margin_weight": 2.0}, "margin_weight acts only with loss discopop, exo, hinge"),
        ({"loss": "discopop", "discopop_temperature": 2.0}, "less than or equal to 1"),
        ({"loss": {}}, "name at least one loss"),
        ({"loss": {"sigmoid": 0.0}}, "each with a weight above 0"),
        ({"loss": "sigmod"}, "sigmod"),
    ],
)
def test_options_that_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Dpo(**options)
