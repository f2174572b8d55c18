"""AQLM: its weights by their definition, old names of layers, and who may train over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from aqlm import QuantizedLinear
from aqlm.utils import _dequantize_weight, unpack_int_data
from transformers import AutoModelForCausalLM

import tunekit as tk
from tunekit.errors import PlanError, TunekitError
from tunekit.testing import FP32, calls_of, conversations, default_plugin, run_context, save_tiny_model
from tunekit.testing.observing import logits, snapshot
from tunekit.values import LoadRequest
from tunekit_aqlm import Aqlm
from tunekit_aqlm.layers import coded, decoded
from tunekit_aqlm.testing import encoded, make_checkpoint
from tunekit_lora import Lora
from tunekit_transformers.frozen_product import StoredLinear

ROWS = [{"messages": [{"role": t.role, "content": t.content} for t in e.messages]} for e in conversations()]
STAGE: dict[str, Any] = {"sft": {"epochs": 1}}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def checkpoint(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(dense, tmp_path_factory.mktemp("coded"), bits=10, books=2, columns=4)


def loaded(folder: Path) -> Any:
    plugin, loader = Aqlm(), default_plugin("tunekit_load_model")
    quantization = plugin.tunekit_quantize(request=LoadRequest(str(folder), FP32))
    request = plugin.tunekit_before_load(request=LoadRequest(str(folder), FP32, quantization))
    return calls_of(loader).own("tunekit_load_model", request=request, context=run_context(loader)).model


def planned(model: Path, *use: Any) -> Any:
    return tk.Pipeline(model=str(model), data=ROWS, use=list(use), stages=[STAGE]).plan()


@pytest.mark.parametrize("bits", [8, 10])
def test_a_layer_says_what_the_library_says_of_the_same_codes(bits):
    """The library's product over a dense weight that it makes by itself, or its kernel of tables for 8 bits."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(16, 32, generator=generator), torch.randn(5, 32, generator=generator)
    parts = encoded(weight, bits=bits, books=2, columns=4)
    layer = QuantizedLinear(32, 16, 4, 1, 2, bits, bias=False)
    for name, part in parts.items():
        getattr(layer, name).data = part
    ours = inputs @ decoded(**parts).T
    torch.testing.assert_close(ours, _by_hand(parts, inputs))
    if bits != 8:
        torch.testing.assert_close(ours, layer(inputs))


def _by_hand(parts, inputs):
    codes, codebooks, scales = parts["codes"], parts["codebooks"], parts["scales"]
    rows = []
    for row in range(codes.shape[0]):
        entries = [
            sum(codebooks[book, int(codes[row, group, book]) % codebooks.shape[1], 0] for book in range(2))
            for group in range(codes.shape[1])
        ]
        rows.append(torch.cat(entries) * scales[row].item())
    return inputs @ torch.stack(rows).T


def test_a_model_says_what_the_weights_that_its_codes_stand_for_say(dense, checkpoint):
    """Made dense by the library; from what was coded it is as far as these codes are, which the README tells."""
    model, plain = loaded(checkpoint), AutoModelForCausalLM.from_pretrained(dense)
    original, apart, size = logits(plain), 0.0, 0.0
    for name, layer in model.named_modules():
        if isinstance(layer, StoredLinear):
            parts, weight = layer.parts(), plain.get_submodule(name).weight.data
            codes = unpack_int_data(parts["codes"], 10)
            coded_weight = _dequantize_weight(codes, parts["codebooks"], parts["scales"])
            apart, size = apart + float((coded_weight - weight).square().sum()), size + float(weight.square().sum())
            weight.copy_(coded_weight)
    said = logits(model)
    torch.testing.assert_close(said, logits(plain), rtol=1e-5, atol=1e-6)
    assert (apart / size) ** 0.5 == pytest.approx(0.050, abs=0.002)
    assert float((said - original).abs().mean() / original.abs().mean()) == pytest.approx(0.069, abs=0.005)


def test_names_of_weights_as_older_checkpoints_have_them_are_understood(dense, checkpoint, tmp_path):
    """transformers compares names of layers now: `lm_head.weight` keeps nothing, and the head would not be found."""
    old = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"]
    place = make_checkpoint(dense, tmp_path / "old", bits=10, books=2, columns=4, linear_weights_not_to_quantize=old)
    assert bool((logits(loaded(place)) == logits(loaded(checkpoint))).all())


def test_the_estimate_counts_the_bytes_that_loading_takes(checkpoint):
    plan = planned(checkpoint, Aqlm(), Lora(rank=4), default_plugin("tunekit_precision", compute="fp32"))
    model = loaded(checkpoint)
    buffers = {name for name, _ in model.named_buffers() if name.endswith("inv_freq")}
    measured = sum(v.numel() * v.element_size() for name, v in snapshot(model).items() if name not in buffers)
    assert plan.estimate is not None
    adapter = 4 * plan.estimate.trainable
    assert plan.estimate.memory["weights"] - adapter == pytest.approx(measured, rel=1e-3)


def test_a_dense_model_and_a_recipe_without_the_plugin_are_refused(dense, checkpoint):
    with pytest.raises(PlanError, match=r"use\.aqlm: reads checkpoints that AQLM has made, and config.json of"):
        planned(dense, Aqlm(), Lora(rank=4))
    with pytest.raises(PlanError, match=r"are stored quantised by aqlm; add `aqlm: \{\}` to use"):
        planned(checkpoint, Lora(rank=4))
    with pytest.raises(PlanError, match="aqlm needs 'adapter'"):
        planned(checkpoint, Aqlm())


def test_a_loaded_model_without_codes_is_an_error(dense):
    with pytest.raises(TunekitError, match=r"use\.aqlm: the loaded model has no layer of AQLM"):
        coded(AutoModelForCausalLM.from_pretrained(dense))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it
def test_a_run_learns_opens_again_and_leaves_an_adapter_that_others_read(checkpoint, tmp_path):
    stage = {"sft": {"epochs": 3, "learning_rate": 5e-3, "checkpoint": {"every": 0}}}
    run = tk.Pipeline(model=str(checkpoint), data=ROWS, use=[Aqlm(), Lora(rank=4)], stages=[stage]).run(
        tmp_path / "run"
    )
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    assert losses[-1] < losses[0]
    assert bool((logits(tk.open_run(tmp_path / "run").bundle.model) == logits(run.bundle.model)).all())
    assert run.export("adapter").verification.kl < 1e-6


def test_an_adapter_over_codes_that_others_read_wrongly_on_a_cpu_is_not_exported_there(dense, tmp_path):
    coded = make_checkpoint(dense, tmp_path / "coded", bits=8)
    recipe = {"model": str(coded), "use": [Aqlm(), Lora(rank=4)], "export": [{"adapter": {}}]}
    told = r"export.0.adapter: cannot be compared here: its codes of one byte .*; export the model: `merged"
    with pytest.raises(PlanError, match=told):
        tk.Pipeline(**recipe, data=ROWS, stages=[STAGE]).plan(estimate=False)
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    with pytest.raises(PlanError, match=r"where they lie; take the folder `adapter` of the run"):
        tk.Pipeline(**recipe, data=pairs, stages=[{"reward": {"epochs": 1}}]).plan(estimate=False)
