"""Block expansion: copies between the layers that change nothing, and train alone."""

from __future__ import annotations

import pytest
import torch
import transformers

from tunekit.errors import TunekitError
from tunekit_freeze import Freeze
from tunekit_freeze.blocks import expand_

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, **HEADS),
    "mistral": lambda: transformers.MistralConfig(**SMALL, **HEADS),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, **HEADS),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, **HEADS, sliding_window=4),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, **HEADS, sliding_window=4),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=2, n_positions=64),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, **HEADS, num_local_experts=2, num_experts_per_tok=1),
}


def model_of(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()


def says(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 23)[None], use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expanded_model_says_the_same_to_the_bit(family):
    model = model_of(family)
    before = says(model)
    assert expand_(model, 2, probe=True) == [2, 5]
    assert model.config.num_hidden_layers == 6
    assert torch.equal(says(model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_copies_learn(family):
    model = model_of(family)
    places = expand_(model, 2, probe=True)
    ids = torch.arange(3, 23)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    layers = model.get_submodule("transformer.h" if family == "gpt2" else "model.layers")
    for place in places:
        assert any(bool(p.grad.any()) for p in layers[place].parameters() if p.grad is not None)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_an_expanded_model_generates_with_a_cache_as_without(family):
    model = model_of(family)
    expand_(model, 2, probe=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)  # so that the copies say something
    ids = torch.arange(3, 11)[None]
    told = [
        model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, use_cache=cached, pad_token_id=0)
        for cached in (True, False)
    ]
    assert torch.equal(*told)


def test_each_copy_stands_behind_the_last_layer_of_its_group(bundle_of, context_of):
    freeze = Freeze(expand=1)
    model = freeze.tunekit_attach_adapter(bundle=bundle_of(), context=context_of(freeze)).model
    layers, before = model.model.layers, bundle_of().model.model.layers
    assert len(layers) == 3
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2]
    for name, value in layers[2].named_parameters():
        zero = name.split(".")[-2] in ("o_proj", "down_proj")
        assert torch.equal(value, torch.zeros_like(value) if zero else before[1].get_parameter(name))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"model.layers.2.{name}" for name, _ in layers[2].named_parameters()
    }


def test_modules_choose_what_trains_inside_the_copies(bundle_of, context_of):
    freeze = Freeze(expand=2, modules=["down_proj"])
    model = freeze.tunekit_attach_adapter(bundle=bundle_of(), context=context_of(freeze)).model
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"model.layers.{place}.mlp.down_proj.weight" for place in (1, 3)
    }


def test_a_model_whose_copies_would_change_it_is_refused(bundle_of):
    model = bundle_of().model
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, given, told: told + 1)
    with pytest.raises(TunekitError, match="copies of the layers of LlamaForCausalLM change what it says"):
        expand_(model, 1, probe=True)


def test_an_expanded_model_saved_whole_opens_without_tunekit(bundle_of, context_of, ids, train, logits, tmp_path):
    freeze = Freeze(expand=2)
    model = freeze.tunekit_attach_adapter(bundle=bundle_of(), context=context_of(freeze)).model
    train(model, ids)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))
