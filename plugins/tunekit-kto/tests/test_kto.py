"""KTO from labelled answers to a trained model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tunekit.errors import DataError
from tunekit.testing import conversations, labelled, plan_for, stage_context, tiny_bundle
from tunekit.values import Event, Example, Examples, Message, Mixing
from tunekit_kto import Kto
from tunekit_lora import Lora
from tunekit_train import AdamW


def trained(stage: Kto, folder: Path) -> tuple[list[dict[str, float]], Any]:
    """The metrics of each step of training on the kit's answers, and the result."""
    events: list[Event] = []
    context = stage_context(stage, AdamW(), Lora(rank=8), folder=folder, watch=events.append)
    bundle = context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context)
    data = context.calls.own("tunekit_prepare_data", data=labelled(), tokenizer=bundle.tokenizer, context=context)
    result = context.calls.own("tunekit_train_stage", bundle=bundle, data=data, context=context)
    return [dict(event.metrics) for event in events if event.kind == "step"], result


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_training_separates_good_answers_from_bad_ones(loss: Any, tmp_path: Path) -> None:
    steps, _ = trained(Kto(loss=loss, epochs=40, learning_rate=1e-2, batch={"rows": 8}), tmp_path)
    assert steps[0]["reward_good"] == pytest.approx(0, abs=1e-5)
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert steps[-1]["reward_good"] > steps[-1]["reward_bad"] + 0.3
    assert steps[-1]["accuracy"] == 1
    assert ("kl" in steps[-1]) == (loss == "kto")


def test_each_answer_stands_beside_another_and_is_counted_once(tmp_path: Path) -> None:
    data = labelled()
    context = stage_context(Kto(), folder=tmp_path)
    prepared = context.calls.own("tunekit_prepare_data", data=data, tokenizer=tiny_bundle().tokenizer, context=context)
    assert {len(item.sequences) for item in prepared} == {2}
    assert prepared.account is data.account
    assert prepared.account.kept == 8


def test_answers_that_a_run_holds_out_stand_beside_none_that_it_learns_from(tmp_path: Path) -> None:
    stage = Kto(evaluate={"share": 0.25})
    context = stage_context(stage, AdamW(), folder=tmp_path)
    rows = [
        replace(row, messages=(row.messages[0], Message("assistant", f"It is {number}.")))
        for number, row in enumerate(labelled(16))
    ]
    bundle = tiny_bundle()
    prepared = context.calls.own(
        "tunekit_prepare_data", data=Examples.of(rows), tokenizer=bundle.tokenizer, context=context
    )
    result = context.calls.own("tunekit_train_stage", bundle=bundle, data=prepared, context=context)

    def told(sequence: Any) -> int:
        return int(bundle.tokenizer.decode(sequence.ids).split("It is ")[1].split(".")[0])

    trained_on = set(range(16)) - set(result.held_out)
    assert len(trained_on) == 12
    assert [told(item.sequences[0]) for item in prepared] == list(range(16))
    assert {told(prepared[number].sequences[1]) for number in trained_on} == trained_on


def test_without_a_kl_term_answers_stand_alone(tmp_path: Path) -> None:
    context = stage_context(Kto(loss="apo_zero_unpaired"), folder=tmp_path)
    prepared = context.calls.own(
        "tunekit_prepare_data", data=labelled(), tokenizer=tiny_bundle().tokenizer, context=context
    )
    assert {len(item.sequences) for item in prepared} == {1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Examples.of(labelled(1), "one"), "is trained on with one prompt alone, and the KL term of kto needs"),
        (Examples.of([*labelled(1)] * 6, "six"), "is trained on with one prompt alone, and the KL term of kto needs"),
        (conversations(), "trains on an answer that is called"),
    ],
)
def test_data_it_cannot_train_on_is_refused(
    data: Examples, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    context = stage_context(Kto(), folder=tmp_path)
    with pytest.raises(DataError, match=message):
        context.calls.own("tunekit_prepare_data", data=data, tokenizer=tiny_bundle().tokenizer, context=context)


def test_a_sample_may_show_one_prompt_alone(tmp_path: Path) -> None:
    context = stage_context(Kto(), folder=tmp_path)
    data = Examples.of([*labelled(1)] * 6)
    assert (
        len(context.calls.own("tunekit_prepare_data", data=data, tokenizer=tiny_bundle().tokenizer, context=context))
        == 6
    )


def test_weights_that_leave_nothing_to_learn_are_refused() -> None:
    with pytest.raises(ValidationError, match="are both 0: no answer would have a loss"):
        Kto(desirable_weight=0, undesirable_weight=0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"undesirable_weight": 0.5}, "undesirable_weight: is 0.5, and no answer is called bad"),
        ({"desirable_weight": 0}, "desirable_weight: is 0, and all answers are called good: none would have a loss"),
    ],
)
def test_weights_of_answers_that_are_not_there_are_refused(
    weights: dict[str, float], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    stage = Kto(**weights)
    context = stage_context(stage, folder=tmp_path)

    def prepare(rows: Iterable[Example], name: str) -> None:
        tokenizer = tiny_bundle().tokenizer
        data = Examples.of(rows, name)
        context.calls.own("tunekit_prepare_data", data=data, tokenizer=tokenizer, context=context)

    prepare(labelled(), "both classes")
    with pytest.raises(DataError, match=message):
        prepare((replace(row, label=True) for row in labelled()), "one class")


def test_streamed_data_is_refused_where_prompts_are_paired_with_answers_from_all_of_it() -> None:
    def problems(stage: Kto) -> list[str]:
        plan = plan_for(stage)
        streamed = tuple(replace(each, mixing=Mixing(streaming=True)) for each in plan.stages)
        return [str(problem) for problem in stage.tunekit_check(replace(plan, stages=streamed), plan.machine)]

    (problem,) = problems(Kto(steps=5))
    assert "loss: is kto, which pairs each prompt with the answer to any other" in problem
    assert not problems(Kto(steps=5, loss="apo_zero_unpaired"))
