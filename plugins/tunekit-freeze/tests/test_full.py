"""Training all weights: what trains, what can be left out, and what it has in common with no adapter."""

from __future__ import annotations

import pydantic
import pytest
import torch

from tunekit.errors import PlanError
from tunekit.testing import MIXED
from tunekit_freeze import Full


def attached(bundle_of, context_of, precision=None, tied=False, **options):
    settings = {"precision": precision} if precision else {}
    full = Full(**options)
    return full.tunekit_attach_adapter(bundle=bundle_of(tied=tied, **settings), context=context_of(full, **settings))


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_every_weight_trains_as_without_an_adapter(bundle_of, context_of, ids, train, logits):
    full, plain = attached(bundle_of, context_of).model, bundle_of().model
    assert train(full, ids) == train(plain, ids)
    assert torch.equal(logits(full), logits(plain))


def test_it_is_saved_as_a_whole_model(bundle_of, context_of):
    assert attached(bundle_of, context_of).save is None


def test_embeddings_can_be_left_as_they_are(bundle_of, context_of, ids, train):
    model = attached(bundle_of, context_of, freeze_embeddings=True).model
    train(model, ids)
    before = dict(bundle_of().model.named_parameters())
    same = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    assert same == {"model.embed_tokens.weight"}


def test_a_head_that_is_the_embedding_is_left_with_it(bundle_of, context_of, ids, train):
    model = attached(bundle_of, context_of, tied=True, freeze_embeddings=True).model
    train(model, ids)
    assert torch.equal(model.lm_head.weight, bundle_of(tied=True).model.lm_head.weight)


@pytest.mark.parametrize("train", [["mlp"], r"model\.layers\.\d+\.mlp"])
def test_names_and_patterns_choose_what_trains(bundle_of, context_of, train):
    model = attached(bundle_of, context_of, train=train).model
    assert trained(model) == {name for name, _ in model.named_parameters() if ".mlp." in name}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": ["mpl"]}, "use.full.train: there is no module named 'mpl'; did you mean 'mlp'?"),
        ({"train": "mlp"}, "matches the regular expression 'mlp'; write [mlp] to name modules"),
        ({"train": ["embed_tokens"], "freeze_embeddings": True}, "freezes all that use.full.train names"),
    ],
)
def test_what_does_not_fit_the_model_is_said_at_plan_time_and_when_attaching(
    bundle_of, context_of, estimate_with, options, message
):
    for start in (lambda: attached(bundle_of, context_of, **options), lambda: estimate_with(Full(**options))):
        with pytest.raises(PlanError) as error:
            start()
        assert message in str(error.value)


def test_options_that_cannot_be_read_are_refused():
    with pytest.raises(pydantic.ValidationError, match="is no regular expression"):
        Full(train="((")


@pytest.mark.parametrize("options", [{}, {"freeze_embeddings": True}])
def test_the_estimate_counts_what_the_run_will_have(bundle_of, context_of, estimate_with, options):
    model = attached(bundle_of, context_of, precision=MIXED, **options).model
    estimate = estimate_with(Full(**options), precision=MIXED)
    assert estimate.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimate.memory["weights"] == sum(p.numel() * p.element_size() for p in model.parameters())
