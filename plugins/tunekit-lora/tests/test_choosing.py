"""What of a model gets an update: ranks and alphas of single layers, some layers only, parameters, rows of tokens."""

from __future__ import annotations

from pathlib import Path

import peft
import pydantic
import pytest
import torch
import transformers

from tunekit.errors import PlanError
from tunekit.testing import FP32, MIXED, run_context, tiny_bundle, tiny_tokenizer
from tunekit.testing.observing import changed, snapshot, train_, trainable
from tunekit.testing.observing import logits as says
from tunekit.values import ModelBundle
from tunekit_lora import Lora

SMALL = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


def attached(bundle=None, saved=None, precision=FP32, **options):
    lora = Lora(**options)
    context = run_context(lora, precision=precision)
    bundle = bundle or tiny_bundle(precision=precision)
    return context.calls.own(
        "tunekit_attach_adapter", bundle=bundle.with_model(bundle.model, saved_adapter=saved), context=context
    )


def experts() -> ModelBundle:
    """A tiny mixture of experts, which transformers stores as one parameter for all of them."""
    config = transformers.MixtralConfig(**SMALL, **HEADS, num_local_experts=4, num_experts_per_tok=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MixtralForCausalLM(config).eval()
    return ModelBundle(model, tiny_tokenizer(), "experts", FP32)


def layer(model, name):
    return model.get_submodule(f"base_model.model.model.layers.{name}")


def test_a_pattern_gives_some_layers_another_rank_at_the_same_scale():
    model = attached(rank=8, rank_pattern={"down_proj": 16, r"layers\.0\.self_attn\.(q|v)_proj": 4}).model
    found = {
        name: (layer(model, name).r["default"], layer(model, name).scaling["default"])
        for name in ("0.mlp.down_proj", "0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj")
    }
    assert found == {
        "0.mlp.down_proj": (16, 2.0),
        "0.self_attn.q_proj": (4, 2.0),
        "1.self_attn.q_proj": (8, 2.0),
        "1.mlp.up_proj": (8, 2.0),
    }


def test_a_pattern_gives_some_layers_another_alpha():
    model = attached(rank=8, rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 12, "o_proj": 4}).model
    scales = {name: layer(model, f"0.self_attn.{name}_proj").scaling["default"] for name in "qkvo"}
    assert scales == {"q": 3.0, "k": 2.0, "v": 2.0, "o": 0.5}
    fixed = attached(rank=8, alpha=8, rank_pattern={"q_proj": 4}).model
    assert layer(fixed, "0.self_attn.q_proj").scaling["default"] == 2.0


@pytest.mark.parametrize(("numbers", "expected"), [((1,), {1}), ((-2,), {0}), ((0, -1), {0, 1})])
def test_only_the_layers_of_these_numbers_are_adapted(numbers, expected):
    model = attached(layers=numbers).model
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert {int(name.split("layers.")[1].partition(".")[0]) for name in adapted} == expected
    assert len(adapted) == 7 * len(expected)


def test_a_target_outside_the_layers_is_adapted_whichever_layers_are_named():
    model = attached(targets=["q_proj", "embed_tokens"], layers=[0]).model
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert [name.removeprefix("base_model.model.model.") for name in adapted] == [
        "embed_tokens",
        "layers.0.self_attn.q_proj",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, "use.lora.layers: there is no layer 2: the model has 2, from 0 to 1; leave it out"),
        (
            {"rank_pattern": {"q_prj": 4}},
            "rank_pattern: no adapted layer's name ends in 'q_prj'; did you mean 'q_proj'",
        ),
        ({"alpha_pattern": {"lm_head": 4}}, "use.lora.alpha_pattern: no adapted layer's name ends in 'lm_head'"),
        ({"rank_pattern": {"k_proj": 65}}, "use.lora.rank_pattern is 65, but model.layers.0.self_attn.k_proj is 64 x"),
        ({"parameters": ["down_prj"]}, "use.lora.parameters: the model has no parameter named 'down_prj'"),
        ({"parameters": ["q_proj.weight"]}, "q_proj.weight belongs to a layer; name the layer in targets"),
        ({"tokens": ["hello there"]}, "use.lora.tokens: 'hello there' is "),
        (
            {"tokens": ["a"], "modules_to_save": ["embed_tokens"]},
            "trains the whole embedding, of which use.lora.tokens",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options, message, estimate_with):
    for start in (lambda: attached(**options), lambda: estimate_with(Lora(**options))):
        with pytest.raises(PlanError) as error:
            start()
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "none", "tokens": ["a"]}, "targets is none and parameters is empty"),
        ({"parameters": ["experts.down_proj"], "dropout": 0.1}, "dropout cannot act on the update of parameters"),
        ({"rank_pattern": {"((": 4}}, "is no regular expression"),
        ({"rank_pattern": {"q_proj": 0}}, "greater than or equal to 1"),
        ({"alpha_pattern": {"q_proj": 0}}, "greater than 0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        Lora(**options)


def test_the_update_of_fused_experts_is_the_product_of_each_expert_s_own_factors():
    bundle = attached(experts(), targets="none", parameters=["experts.down_proj"], rank=4)
    wrapper = layer(bundle.model, "0.mlp.experts")
    torch.nn.init.normal_(wrapper.lora_B["default"].weight)
    before = experts().model.model.layers[0].mlp.experts.down_proj  # [experts out in]
    count, out, inputs = before.shape
    down = wrapper.lora_A["default"].weight.view(count, 4, inputs)
    up = wrapper.lora_B["default"].weight.view(out, 4, count)
    expected = before + 2.0 * torch.einsum("ore,eri->eoi", up, down)
    merged = bundle.model.merge_and_unload().model.layers[0].mlp.experts.down_proj
    torch.testing.assert_close(merged, expected)


def test_experts_learn_beside_linear_layers_and_come_back(tmp_path):
    bundle = attached(experts(), targets=["q_proj"], parameters=["experts.gate_up_proj", "experts.down_proj"], rank=4)
    model, before = bundle.model, snapshot(bundle.model)
    named = set(trainable(model))
    losses = train_(model)
    assert losses[-1] < losses[0]
    assert changed(before, snapshot(model)) == named
    assert len(named) == 2 * 2 * 3
    bundle.save(model, tmp_path / "adapter")
    again = attached(experts(), tmp_path / "adapter", targets=["q_proj"], rank=4).model
    assert torch.equal(says(again), says(model))
    torch.testing.assert_close(says(model.merge_and_unload()), says(again), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_rows_of_the_named_tokens_train(tied, tmp_path):
    bundle = tiny_bundle()
    if tied:
        bundle.model.config.tie_word_embeddings = True
        bundle.model.tie_weights()
    start = bundle.model.get_input_embeddings().weight.detach().clone()
    ids = bundle.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    bundle = attached(bundle, targets=["v_proj"], layers=[0], rank=1, tokens=["<|im_start|>", "<|im_end|>"])
    assert sum(each.numel() for each in trainable(bundle.model).values()) == 2 * 128 + (128 + 64)
    batch = torch.tensor([[*ids, 7, 9, *ids]])
    optimizer = torch.optim.AdamW(list(trainable(bundle.model).values()), lr=1e-2)
    for _ in range(2):
        bundle.model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    bundle.save(bundle.model, tmp_path / "adapter")
    again = tiny_bundle()
    if tied:
        again.model.config.tie_word_embeddings = True
        again.model.tie_weights()
    opened = attached(
        again, tmp_path / "adapter", targets=["v_proj"], layers=[0], rank=1, tokens=["<|im_start|>", "<|im_end|>"]
    ).model
    assert torch.equal(says(opened), says(bundle.model))
    merged = bundle.model.merge_and_unload()
    rows = (merged.get_input_embeddings().weight != start).any(1).nonzero()[:, 0].tolist()
    assert rows == sorted(ids)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q_proj": 4}},
        {"layers": [1]},
        {"tokens": ["<|im_end|>"]},
        {"targets": ["q_proj"], "tokens": ["<|im_end|>"], "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", [FP32, MIXED], ids=["fp32", "mixed"])
def test_the_plan_counts_what_the_run_will_train(options, precision, estimate_with):
    model = attached(precision=precision, **options).model
    estimate = estimate_with(Lora(**options), precision=precision)
    assert estimate.trainable == sum(each.numel() for each in trainable(model).values())
    assert {each.dtype for each in trainable(model).values()} == {torch.float32}


def test_the_settings_are_those_that_peft_reads(tmp_path: Path):
    bundle = attached(rank_pattern={"q_proj": 4}, layers=[0])
    bundle.save(bundle.model, tmp_path)
    config = peft.LoraConfig.from_pretrained(str(tmp_path))
    assert config.rank_pattern == {"q_proj": 4}
    assert config.alpha_pattern == {"q_proj": 8.0}
    assert all(name.startswith("model.layers.0.") for name in config.target_modules)
