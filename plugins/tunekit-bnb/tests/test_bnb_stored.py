"""Weights that bitsandbytes has stored already, and weights made dense again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from tunekit.recipe import Recipe
from tunekit.testing import FP32, MIXED, fake_machine, tiny_tokenizer
from tunekit.values import Estimate, EstimateRequest, LoadRequest, ModelBundle, Plan, Precision
from tunekit_bnb import Bnb


def said(model, ids):
    """Logits in training mode."""
    with torch.no_grad():
        return model.train()(input_ids=ids).logits


def again(folder: Path, plugin: Bnb, precision: Precision = FP32) -> ModelBundle:
    quantization = plugin.tunekit_quantize(request=LoadRequest(str(folder), precision))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, precision.weights), **quantization.arguments
    )
    bundle = ModelBundle(model, None, str(folder), precision, quantization)
    plugin.tunekit_patch(bundle=bundle)
    return bundle


def problems(plugin: Bnb, folder: Path) -> list[str]:
    plan = Plan(Recipe(str(folder)), fake_machine(), FP32, (), (), ())
    return [str(problem) for problem in plugin.tunekit_check(plan=plan, machine=fake_machine())]


@pytest.fixture(
    scope="module", params=[{"double_quantization": False, "skip": ["q_proj"]}, {"bits": 8}], ids=["4", "8"]
)
def stored(request, folder, tmp_path_factory):
    """The options, a folder with the weights as those store them, and what they say."""
    place, plugin = tmp_path_factory.mktemp("stored"), Bnb(**request.param)
    bundle = again(folder, plugin)
    bundle.model.save_pretrained(place)
    tiny_tokenizer().save_pretrained(str(place))
    return request.param, place, bundle


def test_a_checkpoint_that_is_stored_quantised_says_the_same_once_loaded(stored, ids):
    options, place, bundle = stored
    plugin = Bnb(**{name: value for name, value in options.items() if name != "skip"})
    loaded = again(place, plugin)
    assert torch.equal(said(loaded.model, ids), said(bundle.model, ids))
    kinds = bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt
    assert sum(isinstance(layer, kinds) for layer in loaded.model.modules()) == (12 if "skip" in options else 14)


def test_options_that_a_stored_checkpoint_is_not_are_refused(stored):
    options, place, _ = stored
    right = {name: value for name, value in options.items() if name != "skip"}
    assert problems(Bnb(**right), place) == []
    if options.get("bits") == 8:
        assert problems(Bnb(), place) == [
            "use.bnb.bits: is 4, but the weights are stored quantised already, with 8; write bits: 8"
        ]
        assert "use.bnb.threshold: is 5.0" in problems(Bnb(bits=8, threshold=5.0), place)[0]
        return
    assert problems(Bnb(), place) == [
        "use.bnb.double_quantization: is true, but the weights are stored quantised already, with false; "
        "write double_quantization: false"
    ]
    assert "use.bnb.kind: is fp4" in problems(Bnb(kind="fp4", **right), place)[0]
    assert "use.bnb.skip: was decided when" in problems(Bnb(**options), place)[0]


def test_the_estimate_knows_which_layers_a_stored_checkpoint_kept(stored, folder):
    options, place, _ = stored
    right = {name: value for name, value in options.items() if name != "skip"}

    def weights(plugin, model):
        with torch.device("meta"):
            skeleton = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(folder))
        request = EstimateRequest(SimpleNamespace(), LoadRequest(str(model), FP32))
        return plugin.tunekit_estimate(request=request, estimate=Estimate(0, 0, {}, skeleton=skeleton)).memory[
            "weights"
        ]

    assert weights(Bnb(**right), place) == weights(Bnb(**options), folder)


def test_products_over_stored_weights_run_in_the_compute_dtype_of_the_policy(stored):
    options, place, _ = stored
    if options.get("bits") != 8:
        layer = again(place, Bnb(double_quantization=False), MIXED).model.get_submodule("model.layers.0.mlp.up_proj")
        assert layer.compute_dtype == torch.bfloat16


@pytest.mark.skipif(
    not bitsandbytes.nn.modules.has_avx512bf16(), reason="bitsandbytes repacks on CPUs with AVX512-BF16 only"
)
@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit. an autograd kernel was not registered")
def test_weights_that_an_evaluation_has_repacked_are_dense_again_all_the_same(load, ids):
    """Without the plugin's patch; read as they lie, the bytes are garbage. The scales have become bf16 for good."""
    bundle = load(Bnb())
    weight = load(Bnb()).quantization.dequantize(load(Bnb()).model).get_submodule("model.layers.0.mlp.up_proj").weight
    with torch.no_grad():
        bundle.model.eval()(input_ids=ids)
    assert bundle.model.get_submodule("model.layers.0.mlp.up_proj").weight.quant_state.packing_format_for_cpu
    dense = bundle.quantization.dequantize(bundle.model).get_submodule("model.layers.0.mlp.up_proj").weight
    assert (dense - weight).norm() < 0.01 * weight.norm()


@pytest.mark.parametrize("options", [{}, {"bits": 8}])
def test_a_layer_that_was_written_the_other_way_round_is_again(options, ids, tmp_path):
    """GPT-2's `Conv1D` holds [in out]: saved the other way, its architecture would load it transposed, or not."""
    torch.manual_seed(0)
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, **none)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    bundle = again(tmp_path / "gpt2", Bnb(**options))
    before = said(bundle.model, ids)
    dense = bundle.quantization.dequantize(bundle.model)
    assert type(dense.transformer.h[0].mlp.c_fc) is Conv1D
    torch.testing.assert_close(said(dense, ids), before, rtol=1e-3, atol=1e-4)
    dense.save_pretrained(tmp_path / "dense")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(said(loaded.eval().train(), ids), said(dense, ids))
