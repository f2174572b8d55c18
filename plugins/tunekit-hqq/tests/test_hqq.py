"""hqq: how near its weights are, what they weigh, what is swapped, and what is refused."""

from __future__ import annotations

import json

import pydantic
import pytest
import torch

import tunekit as tk
from tunekit.errors import PlanError
from tunekit.testing import FP32, MIXED, conversations, default_plugin, estimate_for, fake_machine, plan_for
from tunekit.testing.observing import logits, snapshot
from tunekit.values import LoadRequest
from tunekit_hqq import Hqq
from tunekit_lora import Lora

HQQLinear = pytest.importorskip("hqq.core.quantize").HQQLinear


def swapped(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, HQQLinear)}


def weight_error(load, **options):
    """|W' - W| / |W| over all swapped layers."""
    dense, layers = load().model.requires_grad_(False), swapped(load(Hqq(**options)).model)
    pairs = [(dense.get_submodule(name).weight, layer.dequantize().detach()) for name, layer in layers.items()]
    error = sum((w - q).square().sum() for w, q in pairs) / sum(w.square().sum() for w, _ in pairs)
    return float(error.sqrt())


def test_each_bit_halves_the_error_and_four_bits_are_what_sixteen_steps_allow(load):
    """Sixteen even steps over the range of 64 normal numbers, about 4.75 deviations: 4.75/15/sqrt(12) = 0.091."""
    errors = {bits: weight_error(load, bits=bits) for bits in (8, 4, 3, 2)}
    assert errors[4] == pytest.approx(0.091, rel=0.1)
    assert errors[8] == pytest.approx(0.091 * 15 / 255, rel=0.2)
    assert errors[8] < errors[4] < errors[3] < errors[2] < 0.6


def test_smaller_groups_are_nearer_and_the_axis_acts(load):
    assert weight_error(load, group=16) < weight_error(load, group=128)
    assert weight_error(load, axis=0) != weight_error(load, axis=1)


@pytest.mark.parametrize("skip", ["q_proj", "model.layers.1"])
def test_skipped_layers_keep_their_weights_and_so_does_the_head(load, skip):
    dense = load().model
    kept = {n for n, m in dense.named_modules() if isinstance(m, torch.nn.Linear) and (skip in n or n == "lm_head")}
    layers = swapped(load(Hqq(skip=[skip])).model)
    assert len(layers) + len(kept) == 15
    assert not kept & set(layers)


@pytest.mark.parametrize("precision", [FP32, MIXED], ids=["fp32", "mixed"])
@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"bits": 2}, {"bits": 3}, {"axis": 0, "bits": 3}])
def test_the_estimate_counts_the_bytes_that_loading_takes(load, options, precision):
    plugin = Hqq(**options)
    alone = estimate_for(Lora(rank=4), plugin, precision=precision)
    adapter = estimate_for(Lora(rank=4), precision=precision).memory["weights"]
    adapter -= estimate_for(precision=precision).memory["weights"]
    model = load(plugin, precision=precision).model
    buffers = {name for name, _ in load(precision=precision).model.named_buffers()}
    measured = sum(v.numel() * v.element_size() for name, v in snapshot(model).items() if name not in buffers)
    for layer in swapped(model).values():
        parts = (layer.meta[name] for name in ("scale", "zero"))
        measured += sum(part.numel() * part.element_size() for part in parts)
    assert alone.memory["weights"] - adapter == pytest.approx(measured, rel=1e-3)
    assert any("hqq packs the weights once they are loaded" in note for note in alone.notes)


def test_groups_that_do_not_divide_are_refused_in_plan_and_run(load):
    message = r"use\.hqq\.group: is 48, which does not divide model.layers.0.self_attn.q_proj of 128 x 128"
    with pytest.raises(PlanError, match=message):
        estimate_for(Lora(rank=4), Hqq(group=48))
    with pytest.raises(PlanError, match=message):
        load(Hqq(group=48))


def test_a_name_to_skip_that_the_model_does_not_have_is_an_error_in_plan_and_run(load):
    message = "use.hqq.skip: the model has no linear layer named 'q_prj'; did you mean 'q_proj'"
    for doing in (lambda: estimate_for(Lora(rank=4), Hqq(skip=["q_prj"])), lambda: load(Hqq(skip=["q_prj"]))):
        with pytest.raises(PlanError) as raised:
            doing()
        assert message in str(raised.value)


@pytest.mark.parametrize("options", [{"bits": 1}, {"group": 4}, {"axis": 2}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(pydantic.ValidationError, match=list(options)[-1]):
        Hqq(**options)


def problems(model):
    plugin = Hqq()
    plan = plan_for(plugin, Lora(rank=4), model=str(model))
    return [str(each) for each in plugin.tunekit_check(plan=plan, machine=fake_machine())]


def test_a_checkpoint_of_hqq_itself_and_a_missing_package_are_refused(tmp_path, monkeypatch):
    assert problems(tmp_path) == []
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "hqq"}}))
    (message,) = problems(tmp_path)
    assert "is stored quantised by hqq, which transformers no longer reads" in message
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert problems("tiny") == ["use.hqq: the package hqq is not installed; pip install 'tunekit-hqq[hqq]'"]


def test_full_fine_tuning_is_refused_because_an_adapter_is_required():
    with pytest.raises(PlanError, match="hqq needs 'adapter'"):
        plan_for(Hqq())


def test_the_quantization_tells_what_it_allows():
    said = Hqq().tunekit_quantize(request=LoadRequest("m", FP32))
    assert (said.method, said.bits, said.adapter_only, said.merge) == ("hqq 4", 5.0, True, "dequantize")


def test_the_dense_model_says_what_the_packed_one_says(load):
    bundle = load(Hqq())
    said = logits(bundle.model)
    torch.testing.assert_close(logits(bundle.quantization.dequantize(bundle.model)), said, rtol=1e-4, atol=1e-5)
    assert not swapped(bundle.model)


def test_a_run_learns_and_opens_again(folder, tmp_path):
    rows = [{"messages": [{"role": t.role, "content": t.content} for t in e.messages]} for e in conversations()]
    stage = {"sft": {"epochs": 3, "learning_rate": 5e-3, "checkpoint": {"every": 0}}}
    use = [Hqq(), Lora(rank=4), default_plugin("tunekit_precision", compute="fp32")]
    run = tk.Pipeline(model=str(folder), data=rows, use=use, stages=[stage]).run(tmp_path / "run")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    assert losses[-1] < losses[0]
    assert bool((logits(tk.open_run(tmp_path / "run").bundle.model) == logits(run.bundle.model)).all())
