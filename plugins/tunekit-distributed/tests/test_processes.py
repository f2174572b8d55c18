"""Two processes train to the numbers of one: losses, gradients, evaluations, weights, and those of a resumed run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CHILD = Path(__file__).with_name("distributed_child.py")
# Two processes add the same numbers in another order, in fp32; AdamW then divides by their square roots.
CLOSE = 2e-5


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory):
    return trained(CHILD, "alone", tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="module", params=["ddp", "fsdp2", "zero3"])
def both(request, trained, tmp_path_factory):
    if request.param == "zero3":
        pytest.importorskip("deepspeed")
    return trained(CHILD, request.param, tmp_path_factory.mktemp(request.param), 2), request.param


def told(found, scenario, *names):
    return [{name: event[name] for name in names if name in event} for event in found[scenario]["events"]]


@pytest.mark.parametrize("scenario", ["full", "lora", "resumed", "reference", "values"])
def test_each_step_and_evaluation_says_what_it_says_in_one_process(alone, both, scenario):
    (one, _), ((two, _), way) = alone, both
    if scenario == "values" and way != "ddp":
        assert scenario not in two
        return
    for place in ("kind", "step"):
        assert told(one, scenario, place) == told(two, scenario, place)
    for name in ("tokens", "supervised_tokens"):
        assert told(one, scenario, name) == told(two, scenario, name)
    for name in ("loss", "eval_loss", "grad_norm", "learning_rate"):
        for here, there in zip(told(one, scenario, name), told(two, scenario, name), strict=True):
            assert there == pytest.approx(here, abs=CLOSE)


@pytest.mark.parametrize(("scenario", "file"), [
    ("full", "model/model.safetensors"), ("lora", "adapter/adapter_model.safetensors"),
    ("resumed", "model/model.safetensors"), ("reference", "adapter/adapter_model.safetensors"),
])  # fmt: skip
def test_the_weights_are_saved_whole_once_and_are_those_of_one_process(alone, both, scenario, file):
    (_, here), ((_, there), _) = alone, both
    one, two = load_file(here / scenario / file), load_file(there / scenario / file)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=CLOSE, rtol=0)


def test_a_resumed_run_reaches_the_very_weights_of_one_that_was_not_interrupted(both):
    (_, folder), _ = both
    whole, resumed = (load_file(folder / name / "model/model.safetensors") for name in ("full", "resumed"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_the_record_says_how_many_trained_and_how(both):
    (found, _), way = both
    for scenario in found.values():
        assert (scenario["facts"]["processes"], scenario["facts"]["parallel"]) == (2, way)


def test_what_does_not_hold_is_switched_off_and_the_record_says_why(both):
    (found, _), way = both
    facts = found["lora"]["facts"]
    assert ("lora_product" in facts["parallel_without"]) == (facts["lora_product_layers"] == 0) == (way == "zero3")
