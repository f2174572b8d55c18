"""DoRA: a variant of LoRA that starts as the identity and trains row lengths."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tunekit.values import Precision
from tunekit_dora import Dora
from tunekit_lora import Lora

MIXED = Precision("cpu", "bfloat16", "bfloat16", "float32", "a test")
QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


def attached(bundle_of, context_of, precision=None, **options):
    settings = {"precision": precision} if precision else {}
    context = context_of(Lora(**options), Dora(), **settings)
    return context.calls.own("tunekit_attach_adapter", bundle=bundle_of(**settings), context=context).model


def test_importing_the_plugin_imports_no_torch():
    code = "import tunekit_dora, sys; assert not {'torch', 'peft', 'transformers', 'tunekit_lora'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dora_needs_a_low_rank_adapter():
    assert Dora.requires <= Lora.provides


@pytest.mark.parametrize("options", [{}, {"targets": ["q_proj", "embed_tokens"]}])
def test_a_fresh_adapter_leaves_the_model_as_it_was(bundle_of, context_of, logits, options):
    # (m / |W|) W: one division and one product per weight.
    torch.testing.assert_close(logits(attached(bundle_of, context_of, **options)), logits(bundle_of().model))


def test_a_fresh_adapter_leaves_a_model_in_bfloat16_as_it_was(bundle_of, context_of, logits):
    model = attached(bundle_of, context_of, precision=MIXED)
    layer = model.get_submodule(QUERY)
    lengths = layer.base_layer.weight.float().norm(dim=1)
    # Measured in bfloat16 they would be wrong by up to 4e-3.
    torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight, lengths, rtol=1e-6, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(logits(model), logits(bundle_of(MIXED).model))


def test_everything_that_trains_is_in_the_trainable_dtype(bundle_of, context_of):
    for trainable in ("float32", "bfloat16"):
        precision = Precision("cpu", "bfloat16", "bfloat16", trainable, "a test")
        model = attached(bundle_of, context_of, precision=precision)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {getattr(torch, trainable)}


def test_the_layer_computes_the_papers_formula(bundle_of, context_of):
    layer = attached(bundle_of, context_of, rank=4).get_submodule(QUERY)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    magnitude = layer.lora_magnitude_vector["default"].weight
    magnitude.data.uniform_(0.5, 2.0)
    direction = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    weight = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    x = torch.randn(3, 128)
    torch.testing.assert_close(layer(x), x @ weight.T, rtol=1e-4, atol=1e-4)


def test_the_row_lengths_train(bundle_of, context_of, ids, train):
    model = attached(bundle_of, context_of)
    before = {name: p.clone() for name, p in model.named_parameters() if "magnitude" in name}
    losses = train(model, ids)
    assert losses[-1] < losses[0]
    assert len(before) == 14
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_merged_equals_unmerged(bundle_of, context_of, ids, train, logits):
    model = attached(bundle_of, context_of)
    train(model, ids)
    expected = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=2e-5, rtol=1e-4)


def test_a_saved_adapter_reopens_with_the_same_numbers_without_naming_dora(
    bundle_of, context_of, ids, train, logits, tmp_path
):
    model = attached(bundle_of, context_of)
    train(model, ids)
    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["use_dora"] is True
    context = context_of(Lora())
    bundle = bundle_of(saved_adapter=tmp_path / "adapter")
    opened = context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context).model
    assert torch.equal(logits(opened), logits(model))


def test_the_estimate_counts_the_row_lengths_too(bundle_of, context_of, estimate_with):
    model = attached(bundle_of, context_of)
    estimate = estimate_with(Lora(), Dora())
    assert estimate.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = sum(m.out_features for m in bundle_of().model.model.modules() if isinstance(m, torch.nn.Linear))
    assert estimate.trainable == estimate_with(Lora()).trainable + rows
