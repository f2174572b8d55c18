"""Freezing: which weights train, what is refused, and that what is saved is what was trained."""

from __future__ import annotations

import pydantic
import pytest
import torch
from safetensors.torch import load_file

from tunekit.errors import PlanError, TunekitError
from tunekit.testing import MIXED, estimate_for
from tunekit_freeze import Freeze
from tunekit_freeze.weights import FILE


def attached(bundle_of, context_of, precision=None, tied=False, saved=None, **options):
    settings = {"precision": precision} if precision else {}
    freeze = Freeze(**options)
    bundle = bundle_of(tied=tied, saved_adapter=saved, **settings)
    return freeze.tunekit_attach_adapter(bundle=bundle, context=context_of(freeze, **settings))


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def of_layer(model, index):
    return {name for name, _ in model.named_parameters() if name.startswith(f"model.layers.{index}.")}


def test_the_last_layers_train(bundle_of, context_of):
    model = attached(bundle_of, context_of, layers=1).model
    assert trained(model) == of_layer(model, 1)


def test_a_negative_number_trains_the_first_layers(bundle_of, context_of):
    model = attached(bundle_of, context_of, layers=-1).model
    assert trained(model) == of_layer(model, 0)


def test_two_layers_train_unless_another_number_is_asked_for(bundle_of, context_of):
    model = attached(bundle_of, context_of).model
    assert trained(model) == of_layer(model, 0) | of_layer(model, 1)


def test_names_choose_inside_the_layers(bundle_of, context_of):
    model = attached(bundle_of, context_of, layers=1, modules=["mlp", "self_attn.q_proj"]).model
    parts = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
    assert trained(model) == {f"model.layers.1.{part}.weight" for part in parts}


def test_a_regular_expression_chooses_inside_the_layers(bundle_of, context_of):
    model = attached(bundle_of, context_of, layers=1, modules=r"self_attn\.(q|v)_proj").model
    assert trained(model) == {f"model.layers.1.self_attn.{part}_proj.weight" for part in "qv"}


def test_extra_modules_train_beside_the_layers(bundle_of, context_of):
    model = attached(bundle_of, context_of, layers=1, extra=["norm", "lm_head"]).model
    assert trained(model) == of_layer(model, 1) | {"model.norm.weight", "lm_head.weight"}


def test_extra_modules_train_alone_where_no_layer_does(bundle_of, context_of):
    assert trained(attached(bundle_of, context_of, layers=0, extra=["norm"]).model) == {"model.norm.weight"}


def test_frozen_weights_stay_bit_identical_and_the_others_move(bundle_of, context_of, ids, train):
    model = attached(bundle_of, context_of, layers=1, extra=["norm"]).model
    losses = train(model, ids)
    before = dict(bundle_of().model.named_parameters())
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == trained(model)
    assert losses[-1] < losses[0]


def test_the_gradients_are_those_of_training_everything(bundle_of, context_of, ids):
    frozen, whole = attached(bundle_of, context_of, layers=1).model, bundle_of().model
    for model in (frozen, whole):
        model(input_ids=ids, labels=ids).loss.backward()
    expected = dict(whole.named_parameters())
    for name, parameter in frozen.named_parameters():
        assert (parameter.grad is not None) == (name in trained(frozen))
        assert parameter.grad is None or torch.equal(parameter.grad, expected[name].grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 3}, "use.freeze.layers is 3, but the model has 2; choose 2 or less"),
        ({"layers": -3}, "use.freeze.layers is -3, but the model has 2; choose -2 or more"),
        ({"modules": ["q_prj"]}, "modules: there is no module named 'q_prj'; did you mean 'q_proj'?"),
        ({"modules": "q_proj"}, "matches the regular expression 'q_proj'; write [q_proj] to name modules"),
        ({"extra": ["lm_haed"]}, "extra: the model has no module named 'lm_haed'; did you mean 'lm_head'?"),
        ({"extra": ["q_proj"]}, "'q_proj' has no weights outside the layers; it has model.embed_tokens, model.norm,"),
        ({"expand": 3}, "expand: is 3, but 2 layers cannot be cut into so many equal groups; choose one of 1, 2"),
    ],
)
def test_what_does_not_fit_the_model_is_said_at_plan_time_and_when_attaching(
    bundle_of, context_of, estimate_with, options, message
):
    for start in (lambda: attached(bundle_of, context_of, **options), lambda: estimate_with(Freeze(**options))):
        with pytest.raises(PlanError) as error:
            start()
        assert message in str(error.value)


def test_all_that_does_not_fit_is_said_at_once(bundle_of, context_of):
    with pytest.raises(PlanError, match="3 problems"):
        attached(bundle_of, context_of, layers=9, modules=["q_prj"], extra=["lm_haed"])


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_one_end_of_a_tied_pair_is_refused_at_plan_time_and_when_attaching(bundle_of, context_of, estimate_with, name):
    for start in (
        lambda: attached(bundle_of, context_of, tied=True, extra=[name]),
        lambda: estimate_with(Freeze(extra=[name]), tied=True),
    ):
        with pytest.raises(PlanError, match=f"{name} is one matrix with .*, and both would train"):
            start()


def test_both_ends_of_a_tied_pair_train_as_one(bundle_of, context_of, ids, train):
    model = attached(bundle_of, context_of, tied=True, layers=0, extra=["embed_tokens", "lm_head"]).model
    train(model, ids)
    assert trained(model) == {"model.embed_tokens.weight"}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, bundle_of(tied=True).model.lm_head.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "nothing would train"),
        ({"layers": 0, "extra": ["norm"], "modules": ["mlp"]}, "modules means nothing"),
        ({"layers": 1, "expand": 1}, "layers means nothing with expand"),
        ({"expand": -1}, "greater than or equal to 0"),
        ({"modules": []}, "names no module"),
        ({"modules": "(("}, "is no regular expression"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        Freeze(**options)


def test_what_trains_is_in_the_trainable_dtype_and_the_rest_as_loaded(bundle_of, context_of):
    model = attached(bundle_of, context_of, precision=MIXED, layers=1).model
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("precision", [None, MIXED])
@pytest.mark.parametrize("options", [{"layers": 1}, {"layers": 1, "extra": ["norm"]}, {"expand": 1}])
def test_the_estimate_counts_what_the_run_will_have(bundle_of, context_of, estimate_with, options, precision):
    settings = {"precision": precision} if precision else {}
    model = attached(bundle_of, context_of, **options, **settings).model
    estimate = estimate_with(Freeze(**options), **settings)
    assert estimate.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimate.parameters == sum(p.numel() for p in model.parameters())
    assert estimate.memory["weights"] == sum(p.numel() * p.element_size() for p in model.parameters())
    assert trained(estimate.skeleton) == trained(model)
    assert all(p.is_meta for p in estimate.skeleton.parameters())


@pytest.mark.parametrize("precision", [None, MIXED])
@pytest.mark.parametrize("options", [{"layers": 1, "extra": ["norm"]}, {"expand": 2}])
def test_saved_weights_reopen_with_the_same_bits(
    bundle_of, context_of, ids, train, logits, tmp_path, precision, options
):
    bundle = attached(bundle_of, context_of, precision, **options)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        train(bundle.model, ids)
    bundle.save(bundle.model, tmp_path / "adapter")
    opened = attached(bundle_of, context_of, precision, saved=tmp_path / "adapter", **options).model
    saved = dict(bundle.model.named_parameters())
    assert all(torch.equal(p, saved[n]) and p.dtype == saved[n].dtype for n, p in opened.named_parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        assert torch.equal(logits(opened), logits(bundle.model))
    assert trained(opened) == trained(bundle.model)


def test_only_the_trained_weights_are_saved_under_names_that_transformers_knows(
    bundle_of, context_of, ids, train, logits, tmp_path
):
    bundle = attached(bundle_of, context_of, layers=1)
    train(bundle.model, ids)
    bundle.save(bundle.model, tmp_path)
    saved, plain = load_file(tmp_path / FILE), bundle_of().model
    assert saved.keys() == trained(bundle.model)
    assert plain.load_state_dict(saved, strict=False).unexpected_keys == []
    assert torch.equal(logits(plain), logits(bundle.model))


def test_weights_saved_with_other_options_are_refused_at_plan_time_and_when_attaching(bundle_of, context_of, tmp_path):
    bundle = attached(bundle_of, context_of, layers=1)
    bundle.save(bundle.model, tmp_path)
    with pytest.raises(TunekitError, match=r"other options of freeze: model\.layers\.0\..* is in one"):
        attached(bundle_of, context_of, layers=2, saved=tmp_path)
    with pytest.raises(TunekitError, match=r"holds no trained_weights\.safetensors"):
        attached(bundle_of, context_of, layers=1, saved=tmp_path / "nothing")
    with pytest.raises(PlanError, match=r"adapter\.start: .* other options of freeze: model\.layers\.0\..* is in one"):
        estimate_for(Freeze(layers=2), start=tmp_path)
    with pytest.raises(PlanError, match=r"adapter\.start: .*/none holds no trained_weights\.safetensors"):
        estimate_for(Freeze(layers=1), start=tmp_path / "none")
    estimate_for(Freeze(layers=1), start=tmp_path)
