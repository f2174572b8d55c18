"""The estimate of a stage against what really happens."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunekit.errors import PlanError
from tunekit.values import BYTES, Account, Estimate
from tunekit_train import AdamW, Batch, Item, Items, TrainConfig
from tunekit_train.estimate import Sample, estimate_stage, padding_share
from tunekit_train.forward import Forward, Strategy, prepared
from tunekit_train.memory import PeakMemory
from tunekit_train.shapes import saved_bytes
from tunekit_train.testing import BF16, FP32, family_model, random_items, tiny_llama, with_lora


def really_saved(model: Any, batch: Batch, autocast: bool) -> int:
    """Bytes of the storages that autograd keeps after a real forward, parameters not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    strategy = Strategy("segments", "test")
    casting = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with prepared(model, strategy, autocast), casting, hooks:
        Forward(model, batch, strategy.lay_out(batch)).logits(torch.tensor([0]))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("adapted", [True, False], ids=["lora", "full"])
def test_a_skeleton_saves_what_the_model_saves(adapted: bool, precision: Any) -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=160, vocab_size=32)
    model = with_lora(model) if adapted else model
    for parameter in model.parameters():
        dtype = precision.trainable if parameter.requires_grad else precision.weights
        parameter.data = parameter.data.to(getattr(torch, dtype))
    items = [Item((_clipped(item),)) for item in random_items(10, shortest=60, longest=60)]
    skeleton = copy.deepcopy(model).to("meta")
    expected = really_saved(model.train(), Batch(tuple(items)), precision.autocast)
    # All weights trained under autocast: the residual stream is fp32, which a skeleton in bf16 does not see.
    tolerance = 0.2 if precision.autocast and not adapted else 0.1
    assert saved_bytes(skeleton, precision, 600) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_that_says_what_pads_is_measured_without_values_as_well(family: str) -> None:
    skeleton = copy.deepcopy(family_model(family)).to("meta")
    expected = saved_bytes(skeleton, FP32, 40)
    skeleton.config.pad_token_id = 0
    assert saved_bytes(skeleton, FP32, 40) == expected
    assert skeleton.config.pad_token_id == 0


def _clipped(item: Item) -> Any:
    (sequence,) = item.sequences
    return replace(sequence, ids=tuple(at % 32 for at in sequence.ids))


def request(plugin: Any, rows: int, items: list[Item] | None = None, sampled: int = 0) -> Any:
    stage = SimpleNamespace(index=0, name="sft", key="stages.0.sft", plugin=SimpleNamespace(plugin=plugin))
    plan = SimpleNamespace(stages=(stage,), precision=FP32, recipe=SimpleNamespace(seed=0), plugins=())
    account = Account()
    account.source("rows.json").rows = sampled or len(items or ())
    return SimpleNamespace(plan=plan, samples={0: Items(items or (), account)}, rows={0: rows})


def test_the_estimate_counts_what_the_sample_shows() -> None:
    plugin, items = object(), random_items(40)
    config = TrainConfig(epochs=2, batch={"rows": 4, "accumulation": 2}, evaluate={"share": 0.1})
    estimate = estimate_stage(plugin, config, request(plugin, 400, items), Estimate(trainable=1000))
    (data,) = estimate.data
    assert data.tokens == sum(item.tokens for item in items)
    assert data.steps == 90  # 360 rows are 90 micro-batches, 45 steps, twice
    assert data.longest == max(item.tokens for item in items)
    assert 0.1 < data.padding < 0.5
    assert 0.6 < data.supervised < 0.8
    assert data.packing is None
    assert estimate.memory["gradients"] == 4000


def test_nothing_is_added_where_there_is_no_sample() -> None:
    plugin, before = object(), Estimate(trainable=1000)
    assert estimate_stage(plugin, TrainConfig(), request(plugin, 4), before) is before


def test_rows_that_become_no_item_or_several_count_as_what_they_become() -> None:
    def steps(sampled: int) -> int:
        plugin = object()
        made = estimate_stage(plugin, TrainConfig(), request(plugin, 400, random_items(40), sampled), Estimate())
        return made.data[0].steps

    assert (steps(40), steps(80), steps(20)) == (100, 50, 200)


@pytest.mark.parametrize("packing", ["greedy", "best_fit"])
def test_the_estimate_packs_the_sample(packing: str) -> None:
    plugin, items = object(), random_items(400)
    config = TrainConfig(batch={"rows": 2, "max_length": 60, "packing": packing})
    (data,) = estimate_stage(plugin, config, request(plugin, 4000, items), Estimate()).data
    bins = 10 * sum(item.tokens for item in items) / (60 * data.packing)
    assert 0.8 < data.packing <= 1
    assert data.steps == pytest.approx(bins / 2, abs=1)


def test_packing_is_refused_for_a_model_that_has_to_be_padded() -> None:
    plugin, model = object(), tiny_llama().to("meta")
    model.config.model_type = "unheard_of"
    config = TrainConfig(batch={"packing": "greedy"})
    with pytest.raises(PlanError, match=r"stages.0.sft.batch.packing: is greedy, but the batches are padded: unheard"):
        estimate_stage(plugin, config, request(plugin, 4, random_items(4)), Estimate(skeleton=model))


def test_padding_share_is_what_a_padded_batch_would_waste() -> None:
    short, long = random_items(1, shortest=5, longest=5), random_items(1, shortest=15, longest=15)
    assert padding_share([[*short, *long]]) == pytest.approx(1 / 3)
    assert padding_share([short, long]) == 0


def test_more_rows_make_a_larger_largest_batch() -> None:
    def tokens(rows: int) -> int:
        sample = Sample(random_items(40), TrainConfig(batch={"rows": rows}), 40, seed=0)
        return sum(item.tokens for item in sample.largest)

    assert tokens(1) < tokens(4) < tokens(16)


def test_adamw_keeps_two_moments_per_trained_parameter() -> None:
    estimate = AdamW().tunekit_estimate(request(None, 0), Estimate(trainable=10))
    assert estimate.memory["optimiser"] == 10 * 2 * BYTES["float32"]


def test_peak_memory_sees_what_was_allocated_and_freed(tmp_path: Path) -> None:
    peak = PeakMemory("cpu")
    before = peak.read()
    torch.ones(64 << 20, dtype=torch.uint8)
    assert peak.read() >= before + (60 << 20)
    if peak.reset:
        assert PeakMemory("cpu").read() < before + (60 << 20)
