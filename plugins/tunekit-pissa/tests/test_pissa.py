"""PiSSA: starts as the model it came from, learns in its principal part, and is saved as a plain LoRA."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import peft
import pydantic
import pytest
import torch
import transformers

from tunekit.errors import PlanError
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import FP32, MIXED, default_plugin, fake_machine, plan_for
from tunekit.values import ModelBundle
from tunekit_lora import Lora
from tunekit_pissa import Pissa

QUERY = "model.layers.0.self_attn.q_proj"
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}  # R + s B A: one subtraction and one addition in fp32 per weight


def attached(bundle_of, context_of, plugins=(), iterations=None, bundle=None, saved=None, precision=FP32, **options):
    pissa = Pissa() if iterations is None else Pissa(iterations=iterations)
    context = context_of(Lora(**options), *plugins, pissa, precision=precision)
    bundle = bundle or bundle_of(precision=precision, saved_adapter=saved)
    return context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context)


def layer_of(model, name=QUERY):
    return model.get_submodule(f"base_model.model.{name}")


def principal(weight, rank):
    """The best approximation of this rank, and the singular values, by numpy in double precision."""
    left, values, right = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)
    return torch.from_numpy(left[:, :rank] * values[:rank] @ right[:rank]), values


@pytest.mark.parametrize("options", [{}, {"rank": 64}, {"rslora": True, "alpha": 3}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.parametrize("iterations", [None, 2])
def test_a_fresh_adapter_leaves_the_model_as_it_was(bundle_of, context_of, logits, options, iterations):
    model = attached(bundle_of, context_of, iterations=iterations, **options).model
    torch.testing.assert_close(logits(model), logits(bundle_of().model), **TOLERANCE)


@pytest.mark.parametrize("options", [{"rank": 4}, {"rank": 16, "alpha": 4}, {"rank": 4, "rslora": True}])
def test_the_adapter_starts_as_the_principal_part_of_each_weight(bundle_of, context_of, options):
    model, plain = attached(bundle_of, context_of, **options).model, bundle_of().model
    for name in (QUERY, "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.k_proj"):
        layer, weight = layer_of(model, name), plain.get_submodule(name).weight
        part, values = principal(weight, options["rank"])
        down, up, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
        torch.testing.assert_close(scale * (up @ down).double(), part, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.base_layer.weight.double(), weight.double() - part, atol=1e-5, rtol=0)
        # Singular values are shared evenly: A A' = B' B = diag(S) / s.
        shared = torch.diag(torch.from_numpy(values[: options["rank"]])) / scale
        torch.testing.assert_close((down @ down.T).double(), shared, atol=1e-4, rtol=0)
        torch.testing.assert_close((up.T @ up).double(), shared, atol=1e-4, rtol=0)


def test_more_iterations_come_closer_to_the_exact_decomposition(bundle_of, context_of):
    part, _ = principal(bundle_of().model.get_submodule(QUERY).weight, 8)

    def error(iterations):
        layer = layer_of(attached(bundle_of, context_of, iterations=iterations, rank=8).model)
        factors = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
        return float((layer.scaling["default"] * factors.double() - part).norm())

    errors = [error(iterations) for iterations in (1, 4, 16, None)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 10 * errors[-1]


@pytest.mark.parametrize("iterations", [0, -1, 1.5])
def test_iterations_outside_their_range_are_refused(iterations):
    with pytest.raises(pydantic.ValidationError, match="iterations"):
        Pissa(iterations=iterations)


def test_the_first_step_is_that_of_the_papers_formula(bundle_of, context_of, ids):
    model = attached(bundle_of, context_of, targets=[QUERY], rank=4).model
    plain, layer = bundle_of().model, layer_of(model)
    for each in (model, plain):
        each(input_ids=ids, labels=ids).loss.backward()
    slope, scale = plain.get_submodule(QUERY).weight.grad, layer.scaling["default"]
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(down.grad, scale * up.T @ slope, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(up.grad, scale * slope @ down.T, atol=1e-6, rtol=1e-4)


def test_only_the_adapter_trains_and_the_residual_stays(bundle_of, context_of, ids, train):
    model = attached(bundle_of, context_of).model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses = train(model, ids)
    assert losses[-1] < losses[0]
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) != value.requires_grad
        assert value.requires_grad == ("lora_" in name)


@pytest.mark.parametrize("iterations", [None, 4])
@pytest.mark.parametrize(
    "options", [{}, {"rslora": True, "rank": 6, "alpha": 5}, {"modules_to_save": ["lm_head"], "targets": ["q_proj"]}]
)
def test_what_is_saved_is_a_plain_lora_for_the_base_as_it_was(
    bundle_of, context_of, ids, train, logits, tmp_path, iterations, options
):
    bundle = attached(bundle_of, context_of, iterations=iterations, **options)
    train(bundle.model, ids)
    bundle.save(bundle.model, tmp_path)
    plain = peft.PeftModel.from_pretrained(bundle_of().model, str(tmp_path))
    assert plain.peft_config["default"].init_lora_weights is True
    assert layer_of(plain).r["default"] == 2 * Lora(**options).config.rank
    assert torch.equal(layer_of(plain).base_layer.weight, bundle_of().model.get_submodule(QUERY).weight)
    torch.testing.assert_close(logits(plain), logits(bundle.model), **TOLERANCE)
    torch.testing.assert_close(logits(plain.merge_and_unload()), logits(bundle.model), **TOLERANCE)


def test_saved_as_peft_saves_it_the_randomised_kind_would_come_back_wrong(
    bundle_of, context_of, ids, train, logits, tmp_path
):
    """The trap that the conversion is for: where this passes no more, it has gone."""
    model = attached(bundle_of, context_of, iterations=1).model
    train(model, ids)
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    again = peft.PeftModel.from_pretrained(bundle_of().model, str(tmp_path))
    assert (logits(again) - logits(model)).abs().max() > 100 * TOLERANCE["atol"]


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights:UserWarning")
def test_the_conversion_is_that_of_peft(bundle_of, context_of, ids, train, tmp_path):
    bundle = attached(bundle_of, context_of)
    model = bundle.model
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    train(model, ids)
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    bundle.save(model, tmp_path / "ours")
    ours, theirs = (peft.utils.load_peft_weights(str(tmp_path / who), device="cpu") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    configs = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
    for config in configs:
        config["target_modules"].sort()  # PEFT keeps them in a set
    assert configs[0] == configs[1]


@pytest.mark.parametrize("options", [{}, {"rslora": True, "rank": 6, "alpha": 5}])
def test_reopened_it_is_to_the_bit_what_it_was_and_trains_on_as_it_would_have(
    bundle_of, context_of, ids, train, logits, tmp_path, options
):
    bundle = attached(bundle_of, context_of, **options)
    train(bundle.model, ids)
    bundle.save(bundle.model, tmp_path)
    opened = attached(bundle_of, context_of, saved=tmp_path, **options)
    before, after = (dict(each.model.named_parameters()) for each in (bundle, opened))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert {n for n, p in before.items() if p.requires_grad} == {n for n, p in after.items() if p.requires_grad}
    assert torch.equal(logits(opened.model), logits(bundle.model))
    assert train(opened.model, ids) == train(bundle.model, ids)
    for each, name in ((bundle, "one"), (opened, "other")):
        each.save(each.model, tmp_path / name)
    saved = [peft.utils.load_peft_weights(str(tmp_path / name), device="cpu") for name in ("one", "other")]
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())


class NoOptions(PluginConfig):
    """None."""


class Uneven(Plugin[NoOptions]):
    """Ranks that differ between layers."""

    @hookimpl
    def tunekit_lora_config(self, config):
        return replace(config, rank_pattern={"q_proj": 5, "down_proj": 9}, alpha_pattern={"q_proj": 2})


def test_ranks_that_differ_between_layers_survive(bundle_of, context_of, ids, train, logits, tmp_path):
    bundle = attached(bundle_of, context_of, plugins=[Uneven()], rslora=True)
    train(bundle.model, ids)
    bundle.save(bundle.model, tmp_path)
    assert torch.equal(logits(attached(bundle_of, context_of, saved=tmp_path).model), logits(bundle.model))
    plain = peft.PeftModel.from_pretrained(bundle_of().model, str(tmp_path))
    torch.testing.assert_close(logits(plain), logits(bundle.model), **TOLERANCE)


def test_a_plain_adapter_is_trained_on_as_it_is(bundle_of, context_of, ids, train, logits, tmp_path):
    context = context_of(Lora())
    plain = context.calls.own("tunekit_attach_adapter", bundle=bundle_of(), context=context)
    train(plain.model, ids)
    plain.save(plain.model, tmp_path / "plain")
    opened = attached(bundle_of, context_of, saved=tmp_path / "plain")
    assert torch.equal(logits(opened.model), logits(plain.model))
    opened.save(opened.model, tmp_path / "again")
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "plain" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_weights_that_are_stored_the_other_way_round_are_decomposed_too(context_of, ids, train, logits, tmp_path):
    def bundle_of(precision=FP32, **changes):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=512)
            return ModelBundle(transformers.GPT2LMHeadModel(config).eval(), None, "gpt2", precision, **changes)

    bundle = attached(bundle_of, context_of, targets=["c_attn"])
    torch.testing.assert_close(logits(bundle.model), logits(bundle_of().model), **TOLERANCE)
    train(bundle.model, ids)
    bundle.save(bundle.model, tmp_path)
    assert torch.equal(logits(attached(bundle_of, context_of, saved=tmp_path).model), logits(bundle.model))


def test_the_estimate_counts_the_copies_it_keeps(bundle_of, context_of, estimate_with):
    model = attached(bundle_of, context_of).model
    plain, estimate = estimate_with(Lora()), estimate_with(Lora(), Pissa())
    assert estimate.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimate.memory["weights"] - plain.memory["weights"] == 4 * estimate.trainable


def test_an_embedding_is_refused_at_plan_time_and_when_attaching(bundle_of, context_of, estimate_with):
    targets = ["q_proj", "embed_tokens"]
    for start in (
        lambda: attached(bundle_of, context_of, targets=targets),
        lambda: estimate_with(Lora(targets=targets), Pissa()),
    ):
        with pytest.raises(PlanError, match=r"pissa decomposes linear layers, and model\.embed_tokens is an embedding"):
            start()


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (MIXED, "rounded to bfloat16 it would not start as the model it came from; set use.precision.weights: fp32"),
        (replace(FP32, weights="float16"), "rounded to float16"),
        (replace(FP32, trainable="bfloat16"), "the adapter holds part of each weight, .* leave use.precision.pure out"),
    ],
)
def test_16_bits_are_refused_at_plan_time(precision, message):
    plan = plan_for(Lora(), Pissa(), precision=precision)
    (problem,) = Pissa().tunekit_check(plan=plan, machine=fake_machine())
    with pytest.raises(PlanError, match=message):
        raise PlanError([problem])
    assert not list(Pissa().tunekit_check(plan=plan_for(Lora(), Pissa()), machine=fake_machine()))


def test_16_bits_are_refused_when_attaching(bundle_of, context_of):
    with pytest.raises(
        PlanError, match="is stored in bfloat16, in which what the adapter starts as and the rest do not add"
    ):
        attached(bundle_of, context_of, precision=MIXED)


def test_16_bits_would_not_be_the_identity(bundle_of):
    """What the refusal is for: the residual in bf16 is another model."""
    weight = bundle_of().model.get_submodule(QUERY).weight.detach().bfloat16().double()
    part, _ = principal(weight, 8)
    rounded = (weight - part).bfloat16().double() + part
    error = float((rounded - weight).norm() / weight.norm())
    assert 5e-4 < error < 4e-3  # half a unit in the last of 8 bits, over all weights


def test_quantised_weights_are_refused_when_planning():
    bnb = pytest.importorskip("tunekit_bnb").Bnb
    with pytest.raises(PlanError, match=r"pissa .* does not work with bnb .*, which provides 'quantization'"):
        plan_for(bnb(), Lora(), Pissa())


def test_it_needs_a_low_rank_adapter():
    assert Pissa.requires <= Lora.provides
    with pytest.raises(PlanError, match=r"pissa needs 'adapter\.lora'"):
        plan_for(default_plugin("tunekit_load_model"), Pissa())


def test_with_row_lengths_of_dora_it_starts_as_the_model_and_comes_back(
    bundle_of, context_of, ids, train, logits, tmp_path
):
    dora = pytest.importorskip("tunekit_dora").Dora()
    bundle = attached(bundle_of, context_of, plugins=[dora])
    torch.testing.assert_close(logits(bundle.model), logits(bundle_of().model), **TOLERANCE)
    train(bundle.model, ids)
    bundle.save(bundle.model, tmp_path)
    plain = peft.PeftModel.from_pretrained(bundle_of().model, str(tmp_path))
    torch.testing.assert_close(logits(plain), logits(bundle.model), **TOLERANCE)
    assert torch.equal(
        logits(attached(bundle_of, context_of, plugins=[dora], saved=tmp_path).model), logits(bundle.model)
    )
