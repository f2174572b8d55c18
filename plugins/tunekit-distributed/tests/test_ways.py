"""The options of each way to train in several processes, seen acting in two."""

from __future__ import annotations

import pytest

from tunekit_distributed.leaves import leaf_classes, not_whole
from tunekit_train import TrainConfig, train
from tunekit_train.testing import CrossEntropy, bundle, context, family_model, random_items


@pytest.fixture
def found(ran):
    return lambda way: ran(way)[0]["options"]


def test_ddp_trains_with_weights_that_take_no_part_only_where_it_looks_for_them(found):
    assert "find_unused" in found("ddp")["strict"]["error"]
    assert found("ddp")["find_unused"]["steps"] == 2


def test_fsdp_lets_go_of_a_layer_between_forward_and_backward_unless_told_to_keep_it(found):
    assert found("fsdp2")["plain"]["in parts"]
    assert not found("fsdp2")["kept"]["in parts"]


def test_fsdp_cuts_the_layers_that_are_named(found):
    assert found("fsdp2")["plain"]["cut"] == ["LlamaDecoderLayer", "LlamaForCausalLM"]
    assert found("fsdp2")["wrapped"]["cut"] == ["LlamaForCausalLM", "LlamaMLP"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_of_zero_is_what_it_says_and_holds_half_of_the_optimisers_states(stage, found):
    whole = found("ddp")["find_unused"]["states"]
    seen = found("zero3")[f"stage {stage}"]
    assert (seen["parallel"], seen["steps"]) == (f"zero{stage}", 2)
    assert seen["states"] == pytest.approx(whole / 2, rel=0.02)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_head_in_parts_is_the_whole_one_where_each_process_has_all_weights(stage, found):
    seen, whole = found("zero3")[f"stage {stage}"], found("fsdp2")["plain"]
    assert (seen["chunked_head"], whole["chunked_head"]) == (True, False)
    assert seen["losses"] == pytest.approx(whole["losses"], abs=2e-5)


@pytest.mark.parametrize(
    ("way", "instead"),
    [("ddp", "LlamaForCausalLM"), ("fsdp2", "DistributedDataParallel"), ("zero3", "ZeRO of stage 2")],
)
def test_a_model_that_is_prepared_as_something_else_is_refused(way, instead, found):
    told = found(way)["mistaken"]
    assert told.startswith(f"{way} was asked for, but the model is prepared as {instead}")
    assert "settings of accelerate or DeepSpeed" in told


def test_a_mixture_of_experts_in_parts_takes_the_steps_of_one_that_is_whole(found, tmp_path):
    pytest.importorskip("deepspeed")
    seen, events = found("zero3")["mixture"], []
    model = family_model("mixtral")
    train(
        CrossEntropy(),
        random_items(16),
        bundle(model),
        TrainConfig(steps=2, batch={"rows": 2, "accumulation": 2}, checkpoint={"every": 0}),
        context(tmp_path, events),
    )
    expected = [event.metrics["loss"] for event in events if event.kind == "step"]
    assert (seen["parallel"], seen["partitioned"]) == ("zero3", True)
    assert seen["losses"] == pytest.approx(expected, rel=1e-4)


def test_a_block_of_experts_that_would_be_gathered_one_by_one_is_seen():
    """DeepSpeed passes over classes that it does not find, and processes would wait for each other for ever."""
    utils = pytest.importorskip("deepspeed.utils")
    model = family_model("mixtral")
    assert not_whole(model) == "MixtralSparseMoeBlock"
    utils.set_z3_leaf_modules(model, leaf_classes(model))
    assert not_whole(model) is None
    assert not_whole(family_model("llama")) is None
