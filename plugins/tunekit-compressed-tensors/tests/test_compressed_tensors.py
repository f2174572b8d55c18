"""Compressed checkpoints: the library's own numbers, what they weigh, and what of them is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers import CompressedTensorsConfig as Theirs

import tunekit as tk
from tunekit.errors import PlanError, TunekitError
from tunekit.testing import (
    FP32,
    MIXED,
    calls_of,
    conversations,
    default_plugin,
    run_context,
    save_tiny_model,
    tiny_model,
    tiny_tokenizer,
)
from tunekit.testing.observing import logits, snapshot, token_ids, training_logits
from tunekit.values import LoadRequest, Precision
from tunekit_compressed_tensors import CompressedTensors
from tunekit_compressed_tensors.layers import compressed
from tunekit_compressed_tensors.producing import compress_
from tunekit_lora import Lora
from tunekit_transformers.frozen_product import StoredLinear

ROWS = [{"messages": [{"role": t.role, "content": t.content} for t in e.messages]} for e in conversations()]
STAGE: dict[str, Any] = {"sft": {"epochs": 1}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four bits in groups of 32, without the query projections."""
    folder = tmp_path_factory.mktemp("stored")
    compress_(tiny_model(), folder, 4, 32, ("lm_head", "re:.*q_proj"))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def loaded(folder: Path, precision: Precision = FP32) -> Any:
    plugin, loader = CompressedTensors(), default_plugin("tunekit_load_model")
    request = LoadRequest(str(folder), precision)
    request = LoadRequest(str(folder), precision, plugin.tunekit_quantize(request=request))
    return calls_of(loader).own("tunekit_load_model", request=request, context=run_context(loader)).model


def planned(model: Path, *use: Any) -> Any:
    return tk.Pipeline(model=str(model), data=ROWS, use=list(use), stages=[STAGE]).plan()


def changed(folder: Path, place: Path, **stored: Any) -> Path:
    """A copy of a checkpoint whose config says something else."""
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    config["quantization_config"] |= stored
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_it_says_what_the_library_says_with_its_weights_made_dense(checkpoint):
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=Theirs(dequantize=True))
    ours = loaded(checkpoint)
    torch.testing.assert_close(logits(ours), logits(theirs.float()), rtol=1e-4, atol=1e-5)
    kept = {name for name, layer in ours.named_modules() if isinstance(layer, StoredLinear)}
    assert len(kept) == 12
    assert not any("q_proj" in name for name in kept)


def in_float8(folder: Path, strategy: str) -> Path:
    """The tiny model with weights in float8 (e4m3), one scale for a row or for all, as llm-compressor stores them."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    model = tiny_model()
    weights = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=strategy)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    apply_quantization_config(model, config, show_progress=False)
    for layer in model.modules():
        if hasattr(layer, "quantization_scheme"):
            largest = layer.weight.data.abs()
            largest = largest.amax(dim=1, keepdim=True) if strategy == "channel" else largest.amax()
            layer.weight_scale.data.copy_(largest.reshape(layer.weight_scale.shape) / 448)  # e4m3's largest number
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    compressor.remove_decompression_hook(model)
    model.save_pretrained(str(folder))
    compressor.update_config(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_weights_in_float8_are_read_and_stay_in_a_byte(strategy, tmp_path):
    """As near to the dense model as three bits of mantissa are: a step of 1/8 to 1/16, over sqrt(12)."""
    folder = in_float8(tmp_path, strategy)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=Theirs(dequantize=True))
    ours, dense = loaded(folder), tiny_model()
    torch.testing.assert_close(logits(ours), logits(theirs.float()), rtol=1e-4, atol=1e-5)
    layers = {name: layer for name, layer in ours.named_modules() if isinstance(layer, StoredLinear)}
    assert len(layers) == 14
    assert {layer.parts()["weight"].dtype for layer in layers.values()} == {torch.float8_e4m3fn}
    pairs = [(layer.weight, dense.get_submodule(name).weight.detach()) for name, layer in layers.items()]
    error = sum((w - d).square().sum() for w, d in pairs) / sum(d.square().sum() for _, d in pairs)
    assert 0.0625 / 12**0.5 < float(error.sqrt()) < 0.125 / 12**0.5
    estimate = planned(folder, CompressedTensors(), Lora(rank=4), default_plugin("tunekit_precision", compute="fp32"))
    measured = sum(v.numel() * v.element_size() for n, v in snapshot(ours).items() if not n.endswith("inv_freq"))
    stored = estimate.estimate.memory["weights"] - 4 * estimate.estimate.trainable
    assert stored == pytest.approx(measured, rel=1e-3)


def test_weights_stay_compressed_through_forward_and_backward(checkpoint):
    """The library makes all of them dense in the first forward, for good."""
    model, theirs = loaded(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint)
    before = snapshot(model)
    training_logits(model)
    training_logits(theirs)
    layer = "model.layers.0.mlp.up_proj"
    assert theirs.get_submodule(layer).weight.shape == (256, 128)
    assert snapshot(model).keys() == before.keys()
    assert {name.rpartition(".")[2] for name in before if name.startswith(layer)} >= {"weight_packed", "weight_scale"}


@pytest.mark.parametrize("precision", [FP32, MIXED], ids=["fp32", "mixed"])
def test_the_estimate_counts_the_bytes_that_loading_takes(checkpoint, precision):
    compute = "fp32" if precision is FP32 else "bf16"
    plan = planned(checkpoint, CompressedTensors(), Lora(rank=4), default_plugin("tunekit_precision", compute=compute))
    model = loaded(checkpoint, plan.precision)
    buffers = {name for name, _ in model.named_buffers() if name.endswith("inv_freq")}
    measured = sum(v.numel() * v.element_size() for name, v in snapshot(model).items() if name not in buffers)
    assert plan.estimate is not None
    assert plan.estimate.memory["weights"] - 4 * plan.estimate.trainable == pytest.approx(measured, rel=2e-3)


def test_a_dense_model_and_a_recipe_without_the_plugin_are_refused(checkpoint, tmp_path):
    dense = save_tiny_model(tmp_path / "dense")
    with pytest.raises(PlanError, match=r"use\.compressed-tensors: reads weights that are stored compressed"):
        planned(dense, CompressedTensors(), Lora(rank=4))
    with pytest.raises(
        PlanError, match=r"stored quantised by compressed-tensors; add `compressed-tensors: \{\}` to use"
    ):
        planned(checkpoint, Lora(rank=4))
    with pytest.raises(PlanError, match="compressed-tensors needs 'adapter'"):
        planned(checkpoint, CompressedTensors())
    with pytest.raises(TunekitError, match=r"the loaded model has no compressed layer"):
        compressed(AutoModelForCausalLM.from_pretrained(dense), "float32")


def test_rounded_inputs_are_refused_unless_that_is_accepted(checkpoint, tmp_path):
    groups = json.loads((checkpoint / "config.json").read_text())["quantization_config"]["config_groups"]
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    groups["group_0"]["input_activations"] = inputs
    place = changed(checkpoint, tmp_path / "rounded", config_groups=groups)
    with pytest.raises(PlanError, match=r"is made to have the inputs of its layers rounded, by an operation without"):
        planned(place, CompressedTensors(), Lora(rank=4))
    assert planned(place, CompressedTensors(plain_inputs=True), Lora(rank=4)).estimate is not None
    assert bool((logits(loaded(place)) == logits(loaded(checkpoint))).all())
    with pytest.raises(
        PlanError, match=r"use\.compressed-tensors\.plain_inputs: means nothing: .* rounds weights only"
    ):
        planned(checkpoint, CompressedTensors(plain_inputs=True), Lora(rank=4))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"kv_cache_scheme": {"num_bits": 8}}, "rounds its key-value cache, which cannot be trained through"),
        ({"transform_config": {"config_groups": {"a": {}}}}, r"rotates its weights \(transform_config\)"),
    ],
)
def test_what_is_not_read_here_is_refused(checkpoint, tmp_path, stored, message):
    with pytest.raises(PlanError, match=message):
        planned(changed(checkpoint, tmp_path / "other", **stored), CompressedTensors(), Lora(rank=4))


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it
def test_a_run_learns_opens_again_and_leaves_an_adapter_that_others_read(checkpoint, tmp_path):
    stage = {"sft": {"epochs": 3, "learning_rate": 5e-3, "checkpoint": {"every": 0}}}
    use = [CompressedTensors(), Lora(rank=4)]
    run = tk.Pipeline(model=str(checkpoint), data=ROWS, use=use, stages=[stage]).run(tmp_path / "run")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    assert losses[-1] < losses[0]
    assert bool((logits(tk.open_run(tmp_path / "run").bundle.model) == logits(run.bundle.model)).all())
    with torch.no_grad():
        assert run.bundle.model(input_ids=token_ids()).logits.isfinite().all()
    alone = run.export("adapter")
    assert alone.verification.kl < 1e-6
    assert "quantization_config=CompressedTensorsConfig(dequantize=True)" in (alone.folder / "README.md").read_text()


def test_an_export_is_packed_as_asked_and_keeps_what_an_adapter_over_packed_weights_has_learnt(checkpoint, tmp_path):
    stage = {"sft": {"epochs": 3, "learning_rate": 5e-3, "checkpoint": {"every": 0}}}
    use = [CompressedTensors(), Lora(rank=4), default_plugin("tunekit_precision", compute="fp32")]
    export = [{"compressed-tensors": {"bits": 8, "group": 64}}]
    run = tk.Pipeline(model=str(checkpoint), data=ROWS, use=use, stages=[stage], export=export).run(tmp_path / "run")
    place = run.folder / "exports" / "compressed-tensors"
    found = json.loads((place / "export.json").read_text())["verification"]
    assert found["kl"] < 0.01 * found["base_kl"]
    stored = json.loads((place / "config.json").read_text())["quantization_config"]
    weights = stored["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"]) == (8, 64)


def test_an_export_of_an_original_that_is_none_is_refused(tmp_path):
    dense, export = save_tiny_model(tmp_path / "dense"), [{"compressed-tensors": {"base": "original"}}]
    pipeline = tk.Pipeline(model=str(dense), data=ROWS, use=[Lora(rank=4)], stages=[STAGE], export=export)
    with pytest.raises(
        PlanError, match=r"export\.0\.compressed-tensors\.base: is original, and the base is not quantised"
    ):
        pipeline.plan(estimate=False)
