"""Adam-mini: the authors' steps, the units of other architectures, and an estimate that is right."""

from __future__ import annotations

import pytest
import torch
from adam_mini import Adam_mini

from tunekit.testing import estimate_for, stage_context, tiny_bundle
from tunekit.values import OptimizerSettings
from tunekit_adam_mini import AdamMini
from tunekit_adam_mini.units import units_of
from tunekit_lora import Lora
from tunekit_train.testing import bundle, check_resumes, family_model, tiny_llama, with_lora


def made(model, folder, weight_decay=0.0, **options):
    plugin = AdamMini(**options)
    return plugin.tunekit_optimizer(
        bundle=bundle(model),
        named_parameters=list(model.named_parameters()),
        settings=OptimizerSettings(1e-2, weight_decay),
        context=stage_context(plugin, folder=folder),
    )


def take_steps_(model, optimizer, steps=5):
    for step in range(steps):
        ids = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_it_takes_the_steps_of_the_authors_code(tmp_path):
    ours, theirs = (tiny_llama(attention_bias=True, tie_word_embeddings=False) for _ in range(2))
    reference = Adam_mini(
        theirs.named_parameters(), lr=1e-2, weight_decay=0.1, dim=32, n_heads=4, n_kv_heads=2, verbose=False
    )
    start = {name: value.detach().clone() for name, value in ours.named_parameters()}
    take_steps_(ours, made(ours, tmp_path, 0.1))
    take_steps_(theirs, reference)
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value, theirs.get_parameter(name), atol=1e-5, rtol=1e-4, msg=name)
        assert not torch.equal(value, start[name])


def test_units_follow_what_a_layer_is():
    llama = tiny_llama(attention_bias=True)
    units = units_of(llama, llama.named_parameters())
    layer = "model.layers.0."
    assert units[f"{layer}self_attn.q_proj.weight"] == units[f"{layer}self_attn.k_proj.weight"] == "head"
    assert units[f"{layer}self_attn.q_proj.bias"] == "number"
    assert units[f"{layer}self_attn.v_proj.weight"] == units["model.embed_tokens.weight"] == "row"
    assert units[f"{layer}input_layernorm.weight"] == "whole"
    gpt2 = family_model("gpt2")
    units = units_of(gpt2, gpt2.named_parameters())
    assert units["transformer.h.0.attn.c_attn.weight"] == "column"  # stored as [in out]
    assert units["transformer.wte.weight"] == "row"
    adapted = with_lora(tiny_llama())
    units = units_of(adapted, [(name, each) for name, each in adapted.named_parameters() if each.requires_grad])
    assert set(units.values()) == {"row"}


def test_a_column_of_a_turned_matrix_is_what_a_row_is_of_a_linear_layer(tmp_path):
    model = family_model("gpt2")
    optimizer = made(model, tmp_path, beta1=0.0)
    weight = model.transformer.h[0].mlp.c_fc.weight
    before = weight.detach().clone()
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.grad = gradient
    optimizer.step()
    expected = before - 1e-2 * gradient / (gradient.square().mean(dim=0, keepdim=True).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("options", [{"beta1": 0.5}, {"beta2": 0.9}, {"eps": 1e-2}], ids=str)
def test_each_option_changes_the_steps(tmp_path, options):
    after = []
    for chosen in ({}, options):
        model = tiny_llama()
        take_steps_(model, made(model, tmp_path, **chosen), 3)
        after.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert not torch.allclose(*after, atol=1e-6, rtol=0)


def test_the_estimate_counts_the_bytes_of_the_state(tmp_path):
    model = tiny_bundle().model
    optimizer = made(model, tmp_path)
    take_steps_(model, optimizer, 1)
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    estimate = estimate_for(AdamMini())
    assert estimate.memory["optimiser"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert estimate.memory["optimiser"] < 0.51 * 2 * 4 * estimate.trainable
    adapter = estimate_for(Lora(rank=4), AdamMini())
    assert 4 * adapter.trainable < adapter.memory["optimiser"] < 2 * 4 * adapter.trainable


def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    check_resumes(AdamMini(), tmp_path)
