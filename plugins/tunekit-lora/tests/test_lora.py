"""LoRA: what it adapts, that it starts as the identity, and that what it saves is what it trained."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import peft
import pydantic
import pytest
import torch

from tunekit.errors import PlanError
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Precision
from tunekit_lora import Lora
from tunekit_lora.targets import choose_targets, linear_layers, shorten

MIXED = Precision("cpu", "bfloat16", "bfloat16", "float32", "a test")
LAST = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def attached(bundle_of, context_of, plugins=(), precision=None, tied=False, **options):
    lora = Lora(**options)
    settings = {"precision": precision} if precision else {}
    bundle = bundle_of(tied=tied, **settings)
    context = context_of(lora, *plugins, **settings)
    return context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context)


def adapters(model):
    return {name for name, module in model.named_modules() if hasattr(module, "lora_A")}


def test_importing_the_plugin_imports_no_torch():
    code = "import tunekit_lora, sys; assert not {'torch', 'peft', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_linear_finds_every_linear_layer_of_the_body_and_not_the_head(bundle_of):
    model = bundle_of().model
    assert shorten(model, choose_targets(model, Lora().config)) == LAST
    assert len(choose_targets(model, Lora().config)) == 14
    assert "lm_head" in linear_layers(model)


def test_all_linear_finds_layers_that_are_no_subclass_of_linear(bundle_of):
    class Packed(torch.nn.Module):
        in_features, out_features = 128, 128

    model = bundle_of().model
    model.model.layers[0].self_attn.q_proj = Packed()
    assert "model.layers.0.self_attn.q_proj" in choose_targets(model, Lora().config)


def test_all_linear_leaves_out_the_head_of_a_model_without_a_body(bundle_of):
    model = bundle_of().model
    model.base_model_prefix = ""
    assert "lm_head" not in choose_targets(model, Lora().config)


def test_a_list_of_names_adapts_these_alone(bundle_of, context_of):
    model = attached(bundle_of, context_of, targets=["q_proj", "layers.1.mlp.up_proj"]).model
    assert {name.removeprefix("base_model.model.model.") for name in adapters(model)} == {
        "layers.0.self_attn.q_proj",
        "layers.1.self_attn.q_proj",
        "layers.1.mlp.up_proj",
    }


def test_a_regular_expression_adapts_the_layers_whose_whole_name_it_matches(bundle_of, context_of):
    model = attached(bundle_of, context_of, targets=r"model\.layers\.1\..*(q|v)_proj").model
    assert {name.removeprefix("base_model.model.model.layers.") for name in adapters(model)} == {
        "1.self_attn.q_proj",
        "1.self_attn.v_proj",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["q_prj", "v_proj"]}, "targets: the model has no layer named 'q_prj'; did you mean 'q_proj'?"),
        ({"targets": ["qqqqq"]}, "it has down_proj, embed_tokens, gate_proj"),
        ({"targets": "q_proj"}, "matches the regular expression 'q_proj'; write [q_proj] to name layers"),
        ({"modules_to_save": ["lm_haed"]}, "the model has no layer named 'lm_haed'; did you mean 'lm_head'?"),
        ({"rank": 512}, "use.lora.rank is 512, but model.layers.0.self_attn.k_proj is 64 x 128; choose 64 or less"),
    ],
)
def test_what_does_not_fit_the_model_is_said_at_plan_time_and_when_attaching(
    bundle_of, context_of, estimate_with, options, message
):
    for start in (lambda: attached(bundle_of, context_of, **options), lambda: estimate_with(Lora(**options))):
        with pytest.raises(PlanError) as error:
            start()
        assert message in str(error.value)


def test_all_that_does_not_fit_is_said_at_once(bundle_of, context_of):
    with pytest.raises(PlanError, match="3 problems"):
        attached(bundle_of, context_of, targets=["q_prj", "v_proj"], rank=100, modules_to_save=["nothing"])


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"dropout": 1.0}, {"alpha": 0}, {"targets": []}, {"targets": "(("}, {"ranks": 8}]
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        Lora(**options)


def test_the_largest_rank_that_fits_is_accepted(bundle_of, context_of, logits):
    bundle = attached(bundle_of, context_of, rank=64)
    assert torch.equal(logits(bundle.model), logits(bundle_of().model))


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dropout": 0.5}, {"modules_to_save": ["lm_head"]}])
def test_a_fresh_adapter_leaves_the_model_as_it_was(bundle_of, context_of, logits, options):
    assert torch.equal(logits(attached(bundle_of, context_of, **options).model), logits(bundle_of().model))


def test_only_the_adapter_trains_and_the_base_stays_bit_identical(bundle_of, context_of, ids, train):
    model = attached(bundle_of, context_of).model
    losses = train(model, ids)
    assert losses[-1] < losses[0]
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    frozen = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if not p.requires_grad}
    before = dict(bundle_of().model.named_parameters())
    assert frozen.keys() == {f"base_model.model.{name}" for name in before}
    assert all(torch.equal(frozen[f"base_model.model.{name}"], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 2.0),
        ({"rank": 32}, 2.0),
        ({"alpha": 4}, 0.5),
        ({"rslora": True, "rank": 16}, 4.0),
        ({"rslora": True, "rank": 64}, 2.0),
        ({"rslora": True, "rank": 4, "alpha": 6}, 3.0),
    ],
)
def test_the_update_is_the_product_of_the_factors_times_the_papers_scale(bundle_of, context_of, options, scale):
    model = attached(bundle_of, context_of, targets=["q_proj"], **options).model
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(3, 128)
    update = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T * scale
    torch.testing.assert_close(layer(x), layer.base_layer(x) + update)


def test_the_rank_sets_the_size_of_the_factors(bundle_of, context_of):
    model = attached(bundle_of, context_of, rank=3, targets=["q_proj"]).model
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert layer.lora_A["default"].weight.shape == (3, 128)
    assert layer.lora_B["default"].weight.shape == (128, 3)


def test_dropout_acts_in_training_and_not_in_evaluation(bundle_of, context_of, ids, train):
    model = attached(bundle_of, context_of, dropout=0.5).model
    train(model, ids, steps=2)
    with torch.no_grad():
        assert not torch.equal(model.train()(ids).logits, model.train()(ids).logits)
        assert torch.equal(model.eval()(ids).logits, model.eval()(ids).logits)


def test_modules_to_save_train_whole(bundle_of, context_of, ids, train):
    model = attached(bundle_of, context_of, modules_to_save=["lm_head"]).model
    train(model, ids, steps=1)
    trained = model.base_model.model.lm_head.modules_to_save["default"].weight
    assert not torch.equal(trained, bundle_of().model.lm_head.weight)


def test_the_same_seed_gives_the_same_adapter_whatever_came_before(bundle_of, context_of):
    def first(seed, drawn):
        bundle, lora = bundle_of(), Lora()
        torch.randn(drawn)
        context = context_of(lora, seed=seed)
        model = lora.tunekit_attach_adapter(bundle=bundle, context=context).model
        return model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").lora_A["default"].weight

    assert torch.equal(first(1, 0), first(1, 7))
    assert not torch.equal(first(1, 0), first(2, 0))


def test_attaching_leaves_the_global_random_numbers_where_they_were(bundle_of, context_of):
    lora, bundle = Lora(), bundle_of()
    expected = torch.get_rng_state()
    lora.tunekit_attach_adapter(bundle=bundle, context=context_of(lora, seed=5))
    assert torch.equal(torch.get_rng_state(), expected)


def test_trained_parameters_are_in_the_trainable_dtype_and_frozen_ones_as_loaded(bundle_of, context_of):
    model = attached(bundle_of, context_of, precision=MIXED, modules_to_save=["lm_head"]).model
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    half = attached(bundle_of, context_of, precision=replace(MIXED, trainable="bfloat16")).model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "options", [{}, {"rslora": True}, {"targets": ["q_proj", "embed_tokens"]}, {"modules_to_save": ["lm_head"]}]
)
def test_merged_equals_unmerged(bundle_of, context_of, ids, train, logits, options):
    model = attached(bundle_of, context_of, **options).model
    train(model, ids)
    expected = logits(model)
    assert not torch.allclose(expected, logits(bundle_of().model), atol=1e-2)
    # Products are summed in another order: a few units in the last place of logits of about 1.
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", [None, MIXED])
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}, {"targets": r".*layers\.0.*_proj"}])
def test_a_saved_adapter_reopens_with_the_same_numbers_ready_to_train_on(
    bundle_of, context_of, ids, train, logits, tmp_path, precision, options
):
    bundle = attached(bundle_of, context_of, precision=precision, **options)
    if precision is None:
        train(bundle.model, ids)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            train(bundle.model, ids)
    bundle.model.save_pretrained(tmp_path / "adapter")
    lora = Lora(**options)
    fresh = bundle_of(saved_adapter=tmp_path / "adapter", **({"precision": precision} if precision else {}))
    opened = lora.tunekit_attach_adapter(bundle=fresh, context=context_of(lora)).model
    assert not opened.training
    names = [{n for n, p in model.named_parameters() if p.requires_grad} for model in (bundle.model, opened)]
    assert names[0] == names[1]
    trained, loaded = (peft.get_peft_model_state_dict(model) for model in (bundle.model, opened))
    assert trained.keys() == loaded.keys()
    assert all(torch.equal(value, loaded[key]) and value.dtype == loaded[key].dtype for key, value in trained.items())
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        assert torch.equal(logits(opened), logits(bundle.model))


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_low_rank_update_of_a_tied_embedding_is_refused(bundle_of, context_of, name):
    with pytest.raises(PlanError, match=f"{name} is one matrix with the other end of the model"):
        attached(bundle_of, context_of, tied=True, targets=["q_proj", name])


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_head_tied_to_the_embedding_stays_tied_when_it_is_trained(bundle_of, context_of, ids, train, logits, name):
    model = attached(bundle_of, context_of, tied=True, modules_to_save=[name]).model
    train(model, ids)
    expected = logits(model)
    merged = model.merge_and_unload()
    assert torch.equal(merged.lm_head.weight, merged.model.embed_tokens.weight)
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"rank": 16}, {"modules_to_save": ["lm_head"]}, {"targets": ["q_proj"]}])
@pytest.mark.parametrize("precision", [None, MIXED])
def test_the_estimate_counts_what_the_run_will_have(bundle_of, context_of, estimate_with, options, precision):
    settings = {"precision": precision} if precision else {}
    model = attached(bundle_of, context_of, **options, **settings).model
    estimate = estimate_with(Lora(**options), **settings)
    assert estimate.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimate.parameters == sum(p.numel() for p in model.parameters())
    assert estimate.memory["weights"] == sum(p.numel() * p.element_size() for p in model.parameters())
    assert {name: p.shape for name, p in estimate.skeleton.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    assert all(p.is_meta for p in estimate.skeleton.parameters())


class NoOptions(PluginConfig):
    """A variant without options."""


class WiderQueries(Plugin[NoOptions]):
    """A stranger's variant of LoRA."""

    @hookimpl
    def tunekit_lora_config(self, config):
        return replace(config, rank_pattern={"q_proj": 12}, init_lora_weights="gaussian")


def test_other_plugins_change_the_configuration_through_the_published_hook(bundle_of, context_of, estimate_with):
    model = attached(bundle_of, context_of, plugins=[WiderQueries()]).model
    assert model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").r == {"default": 12}
    assert model.get_submodule("base_model.model.model.layers.0.self_attn.k_proj").r == {"default": 8}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimate_with(Lora(), WiderQueries()).trainable == trainable
