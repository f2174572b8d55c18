"""Two processes train to the numbers of one: losses, gradients, evaluations, weights, and those of a resumed run."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file

from tunekit_train.parallel import Parallel

# Two processes add the same numbers in another order, in fp32; AdamW then divides by their square roots.
CLOSE = 2e-5
EVERYWHERE = ["full", "resumed", "reference", "reference_resumed", "laid", "coupled", "streamed"]
WHOLE = ["values", "best", "heads", "compiled"]
"""Scenarios that want the whole model in each process: those of ddp."""
MODEL, ADAPTER = "model/model.safetensors", "adapter/adapter_model.safetensors"
FILES = dict.fromkeys(["full", "resumed", "streamed", "best", "heads", "compiled"], MODEL)


@pytest.fixture(scope="module")
def alone(child, tmp_path_factory):
    folder, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():  # as in the other processes
        warnings.simplefilter("ignore")
        found = child.scenarios(folder, Parallel())
    yield found, folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["ddp", "fsdp2", "zero3"])
def both(request, ran):
    found, folder = ran(request.param)
    return (found["scenarios"], folder), request.param


def told(found, scenario, *names):
    return [{name: event[name] for name in names if name in event} for event in found[scenario]["events"]]


@pytest.mark.parametrize("scenario", [*EVERYWHERE, *WHOLE])
def test_each_step_and_evaluation_says_what_it_says_in_one_process(alone, both, scenario):
    (one, here), ((two, there), way) = alone, both
    if scenario in WHOLE and way != "ddp":
        assert scenario not in two
        return
    for place in ("kind", "step"):
        assert told(one, scenario, place) == told(two, scenario, place)
    for name in ("tokens", "supervised_tokens"):
        assert told(one, scenario, name) == told(two, scenario, name)
    for name in ("loss", "eval_loss", "grad_norm", "learning_rate"):
        for left, right in zip(told(one, scenario, name), told(two, scenario, name), strict=True):
            assert right == pytest.approx(left, abs=CLOSE)
    file = FILES.get(scenario, ADAPTER)
    weights, found = load_file(here / scenario / file), load_file(there / scenario / file)
    assert weights.keys() == found.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, atol=CLOSE, rtol=0)


@pytest.mark.parametrize(("whole", "resumed", "file"), [
    ("full", "resumed", MODEL), ("reference", "reference_resumed", ADAPTER),
])  # fmt: skip
def test_a_resumed_run_reaches_the_very_weights_of_one_that_was_not_interrupted(both, whole, resumed, file):
    (_, folder), _ = both
    weights, again = load_file(folder / whole / file), load_file(folder / resumed / file)
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())


def test_the_record_says_how_many_trained_and_how(both):
    (found, _), way = both
    for scenario in found.values():
        assert (scenario["facts"]["processes"], scenario["facts"]["parallel"]) == (2, way)


def test_what_does_not_hold_is_switched_off_and_the_record_says_why(alone, both):
    (one, _), ((found, _), way) = alone, both
    facts = found["laid"]["facts"]
    without = facts["parallel_without"]
    assert ("lora_product" in without) == (facts["lora_product_layers"] == 0) == (way == "zero3")
    assert ("chunked_head" in without) == (not facts["chunked_head"]) == (way != "ddp")
    assert facts["frozen_layers_reason"] == without["frozen_layers"]
    coupled = [each["coupled"]["facts"] for each in (one, found)]
    assert [facts["scored_apart"] for facts in coupled] == [True, False]
    assert coupled[1]["scored_apart_reason"] == without["scored_apart"]


def test_what_is_said_to_be_done_in_several_processes_is_done(both):
    (found, _), _ = both
    laid, streamed = found["laid"]["facts"], found["streamed"]["facts"]
    assert (laid["share_prompts"], laid["packing"], laid["checkpointing"]) == (True, "greedy", True)
    assert laid["packing_efficiency"] > 0.5
    assert found["reference_resumed"]["facts"]["reference"] == "cached"
    assert streamed["couples_batch"]
    assert streamed["items_trained_on"] is None


def test_the_best_weights_and_an_early_stop_are_those_of_one_process(alone, ran):
    (one, _), (found, _) = alone, ran("ddp")
    here, there = one["best"]["facts"], found["scenarios"]["best"]["facts"]
    assert there["best"]["step"] == here["best"]["step"] < here["stopped_early_at"] < 12
    assert there["stopped_early_at"] == here["stopped_early_at"]
    rates = [event["learning_rate"] for event in one["best"]["events"] if event["kind"] == "step"]
    assert rates[-1] < rates[0], "the plateau has lowered the rate"
