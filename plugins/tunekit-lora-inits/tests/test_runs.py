"""Whole runs with starts that look at the data, or at what quantisation has lost."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
import transformers

import tunekit as tk
from tunekit.errors import InterruptedRunError, PlanError, TunekitError
from tunekit.testing import conversations, save_tiny_model, tiny_model, tiny_tokenizer
from tunekit.testing.observing import logits
from tunekit_lora_inits.lost import stored_weight

SFT = {"epochs": 1, "learning_rate": 1e-2, "batch": {"rows": 2}, "checkpoint": {"every": 2}}
STARTS: dict[str, dict[str, Any]] = {"eva": {"items": 8}, "corda": {"items": 8}, "loraga": {"items": 4}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def pipeline(model, **use):
    rows = [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in example.messages]}
        for example in conversations()
    ]
    use = {"precision": {"compute": "fp32"}, "lora": {"rank": 4, "targets": ["q_proj", "down_proj"]}, **use}
    return tk.Pipeline(model=model, data=rows, use=use, stages=[{"sft": SFT}])


def weights(run):
    return {name: value.detach().clone() for name, value in run.bundle.model.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", STARTS)
def test_a_run_begins_by_its_own_data_and_opens_and_resumes_to_the_same_bits(name, model, tmp_path):
    whole = pipeline(model, **{name: STARTS[name]})
    run = whole.run(tmp_path / "whole")
    expected = weights(run)
    assert same(weights(tk.open_run(tmp_path / "whole")), expected)

    def stop(event):
        if event.kind == "step" and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        whole.run(tmp_path / "run", watchers=[stop])
    torch.randn(5)
    assert same(weights(whole.resume(tmp_path / "run")), expected)


def test_other_data_gives_another_start(model, tmp_path):
    first = pipeline(model, eva={"items": 8})
    other = pipeline(model, eva={"items": 2})
    adapters = [each.run(tmp_path / str(at)).bundle.model for at, each in enumerate((first, other))]
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    downs = [each.get_submodule(name).lora_A["default"].weight for each in adapters]
    assert not torch.allclose(*downs, atol=1e-2)


def test_a_model_opened_without_training_has_no_data_to_begin_by(model):
    with pytest.raises(TunekitError, match="eva begins by looking at the data of the stage"):
        tk.open_model(model, {"lora": {}, "eva": {}, "precision": {"compute": "fp32"}})


@pytest.mark.parametrize(("bits", "share"), [(4, 0.8), (8, 0.95)])  # in 8 bits inputs are rounded as well
def test_loftq_begins_nearer_to_the_dense_model_than_the_quantised_one_is(bits, share, model):
    pytest.importorskip("tunekit_bnb")
    dense = logits(tiny_model())
    talks = [
        tk.open_model(model, {"bnb": {"bits": bits}, "lora": {"rank": 16}, "precision": {"compute": "fp32"}, **use})
        for use in ({}, {"loftq": {}})
    ]
    plain, mended = (float((logits(talk.bundle.model) - dense).norm()) for talk in talks)
    assert mended < share * plain, (mended, plain)


def test_loftq_knows_how_a_square_weight_is_stored(tmp_path):
    """GPT-2 stores its weights the other way round, of which the shape of a square one tells nothing."""
    pytest.importorskip("tunekit_bnb")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=512, bos_token_id=2, eos_token_id=2)
        )
    made.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    use = {"bnb": {}, "lora": {"rank": 16, "targets": ["attn.c_proj"]}, "precision": {"compute": "fp32"}}
    plain, mended = (tk.open_model(str(tmp_path), {**use, **more}).bundle.model for more in ({}, {"loftq": {}}))
    for at in range(2):
        dense = made.transformer.h[at].attn.c_proj.weight.detach().T
        name = f"base_model.model.transformer.h.{at}.attn.c_proj"
        one, other = (model.get_submodule(name) for model in (plain, mended))
        lost = dense - stored_weight(one)
        update = other.get_delta_weight("default").detach()
        assert float((lost - update).norm()) < 0.8 * float(lost.norm())


def test_a_run_on_what_loftq_has_mended_learns_and_opens_with_the_same_numbers(model, tmp_path):
    pytest.importorskip("tunekit_bnb")
    run = pipeline(model, bnb={}, loftq={}).run(tmp_path / "run")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    assert losses[-1] < losses[0]
    trained = [each for each in run.bundle.model.parameters() if each.requires_grad]
    assert all(each.is_contiguous() for each in trained), "products would round otherwise once they come from a file"
    opened = tk.open_run(tmp_path / "run").bundle.model
    assert torch.equal(logits(opened), logits(run.bundle.model))


def test_loftq_is_refused_over_a_model_of_which_only_rounded_weights_are_there(model, tmp_path):
    stored = tmp_path / "stored"
    shutil.copytree(model, stored)
    config = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "aqlm"}}))
    with pytest.raises(
        PlanError, match=r"use.loftq: mends what quantisation has lost, and .*stored is stored quantised"
    ):
        pipeline(str(stored), bnb={}, loftq={}).plan(estimate=False)


def test_loftq_says_where_the_dense_weights_are_missing(model, tmp_path):
    from tunekit_lora_inits.lost import Checkpoint

    checkpoint = Checkpoint.of(model, "tiny")
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(TunekitError, match=f"tiny holds no {name}x before it"):
        checkpoint.weight(f"{name}x", torch.zeros(128, 128))
    with pytest.raises(TunekitError, match="is not what the quantised layer was made of: they differ by 1"):
        checkpoint.weight(name, torch.zeros(128, 128))
