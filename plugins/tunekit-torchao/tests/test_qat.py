"""Quantisation-aware training: rounding the result changes nothing, gradients pass, and adapters are refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torchao.quantization import quantize_
from torchao.quantization.qat import QATConfig

import tunekit as tk
from tunekit.errors import PlanError
from tunekit.testing import conversations, default_plugin, estimate_for, tiny_bundle
from tunekit.testing.observing import gradients, logits, train_
from tunekit_freeze import Freeze
from tunekit_lora import Lora
from tunekit_torchao import Qat, Torchao
from tunekit_torchao.kinds import base_config

ROWS = [{"messages": [{"role": t.role, "content": t.content} for t in e.messages]} for e in conversations()]
PRECISE = default_plugin("tunekit_precision", compute="fp32")
STAGE: dict[str, Any] = {"sft": {"epochs": 4, "learning_rate": 5e-3, "checkpoint": {"every": 0}}}


def patched(**options):
    bundle = tiny_bundle()
    Qat(**options).tunekit_patch(bundle=bundle)
    return bundle.model.requires_grad_(True)


@pytest.mark.parametrize("kind", ["int4", "int4-dynamic"])
def test_what_was_trained_is_what_is_there_once_it_is_rounded(kind):
    """Bit for bit: torchao's own conversion, which rounds for good, finds nothing left to change."""
    model = patched(kind=kind)
    losses = train_(model, steps=6, learning_rate=2e-3)
    assert losses[-1] < losses[0]
    rounded = copy.deepcopy(model)
    quantize_(rounded, QATConfig(base_config(kind, 32), step="convert"))
    assert bool((logits(rounded) == logits(model)).all())


def test_gradients_are_those_at_the_rounded_weights():
    """Those of a plain model whose weights are the rounded ones; none for the few that lie outside of the range."""
    plain = tiny_bundle().model
    rounded = copy.deepcopy(plain)
    quantize_(rounded, base_config("int4", 32), filter_fn=lambda layer, name: "_proj" in name)
    for name, layer in rounded.named_modules():
        if "_proj" in name:
            plain.get_submodule(name).weight.data = layer.weight.dequantize()
    expected, found = gradients(plain.requires_grad_(True)), gradients(patched())
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        passed = found[name] != 0
        torch.testing.assert_close(found[name][passed], gradient[passed], rtol=1e-4, atol=1e-6)
        assert "_proj" not in name or passed.float().mean() > 0.97


def test_every_weight_gets_a_gradient():
    model = patched()
    assert gradients(model).keys() == {name for name, _ in model.named_parameters()}


def test_the_group_and_the_layers_to_skip_act():
    plain = logits(tiny_bundle().model)
    fine, coarse = (float((logits(patched(group=group)) - plain).norm()) for group in (16, 128))
    assert fine < coarse
    assert type(patched(skip=["q_proj"]).model.layers[0].self_attn.q_proj) is torch.nn.Linear


def test_adapters_and_rounded_weights_are_refused():
    for use in ([Qat(), Lora(rank=4)], [Qat(), Torchao(), Lora(rank=4)]):
        with pytest.raises(PlanError, match=r"qat \(tunekit-torchao .*\) does not work with"):
            tk.Pipeline(model="tiny", data=ROWS, use=use, stages=[STAGE]).plan()


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(PlanError, match=r"use\.qat\.group: is 48, which does not divide the 128 inputs of"):
        estimate_for(Qat(group=48))


def test_a_run_learns_and_leaves_an_ordinary_model(folder, tmp_path):
    use = [Qat(), Freeze(layers=1), PRECISE]
    run = tk.Pipeline(model=str(folder), data=ROWS, use=use, stages=[STAGE]).run(tmp_path / "run")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    assert sum(losses[len(losses) // 2 :]) < sum(losses[: len(losses) // 2])
    again = tk.open_run(tmp_path / "run")
    assert bool((logits(again.bundle.model) == logits(run.bundle.model)).all())


def test_what_it_has_trained_is_exported_rounded_and_says_the_same(folder, tmp_path):
    """The same kind and groups: nothing is lost, where rounding after plain training loses something."""
    kept = {}
    for name, use in (("aware", [Qat(group=64)]), ("plain", [])):
        stage = {"sft": {"epochs": 2, "learning_rate": 2e-3, "checkpoint": {"every": 0}}}
        export = [{"torchao": {"kind": "int4", "group": 64, "tolerance": 0.9}}]
        pipeline = tk.Pipeline(model=str(folder), data=ROWS, use=[*use, PRECISE], stages=[stage], export=export)
        run = pipeline.run(tmp_path / name)
        kept[name] = json.loads((run.folder / "exports" / "torchao" / "export.json").read_text())
    aware, plain = (kept[name]["verification"]["kl"] for name in ("aware", "plain"))
    assert aware < 1e-5 < plain
