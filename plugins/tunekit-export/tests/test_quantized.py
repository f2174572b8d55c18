"""Adapters trained on quantised weights: merged into those made dense or into the original ones, not rounded again."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunekit.errors import PlanError
from tunekit.testing.observing import logits
from tunekit.testing.options import shows
from tunekit_export import Adapter, Gguf, Merged


@pytest.fixture(scope="module", params=[4, 8], ids="{} bits".format)
def quantized(request, train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("quantized") / "run", bnb={"bits": request.param}, lora={"rank": 4})


def test_the_base_is_made_dense_before_the_adapter_is_added(quantized):
    logits(quantized.bundle.model)  # an evaluation before: bitsandbytes may have repacked the weights in it
    made = quantized.export(Merged())
    again = AutoModelForCausalLM.from_pretrained(made.folder)
    assert not hasattr(again.config, "quantization_config")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert made.verification.kl < 0.01 * made.verification.base_kl
    expected = logits(quantized.bundle.model)
    assert (logits(again) - expected).abs().mean() < 0.02 * expected.abs().mean()


@shows("base")
def test_the_original_weights_are_another_base(quantized, base):
    stored, original = (quantized.export(Merged(base=which, tolerance=0.9)) for which in ("stored", "original"))
    one, other, untrained = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (stored.folder, original.folder, base)
    )
    name = "model.layers.0.mlp.up_proj.weight"
    learnt = other[name] - untrained[name]
    assert torch.linalg.matrix_rank(learnt, rtol=1e-3) == 4  # the adapter and nothing else
    assert not torch.allclose(one[name], other[name], atol=1e-4)
    assert stored.verification.kl < original.verification.kl


def test_the_adapter_is_read_on_the_quantised_base_and_a_file_is_made_of_the_dense_one(quantized):
    assert quantized.export(Adapter()).verification.kl < 1e-4
    assert quantized.export(Gguf(quantization="f16")).verification.kl < 0.01


def test_there_is_no_original_of_what_was_not_quantised(train, tmp_path):
    with pytest.raises(PlanError, match=r"export\.0\.merged\.base: is original, and the base is not quantised"):
        train(tmp_path / "run", export=[{"merged": {"base": "original"}}])


def test_there_is_no_original_of_weights_that_are_stored_quantised(base, train, tmp_path):
    stored = tmp_path / "stored"
    shutil.copytree(base, stored)
    described = json.loads((stored / "config.json").read_text())
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (stored / "config.json").write_text(json.dumps({**described, "quantization_config": said}))
    with pytest.raises(PlanError, match=r"export\.0\.merged\.base: is original, and .* itself is stored quantised"):
        train(tmp_path / "run", model=stored, export=[{"merged": {"base": "original"}}], bnb={}, lora={})
