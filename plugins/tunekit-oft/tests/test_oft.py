"""OFT: it is a rotation of the inputs in blocks, and each option changes it."""

from __future__ import annotations

import peft
import pydantic
import pytest
import torch

from tunekit.errors import PlanError
from tunekit.testing import AdapterSuite, run_context, tiny_bundle, tiny_model
from tunekit.testing.observing import logits, train_, trainable
from tunekit_oft import Oft

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it
QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


class TestOft(AdapterSuite):
    plugin = Oft(block_size=16)
    tolerance = 1e-4  # a product more on the way of every input


class TestExactOft(AdapterSuite):
    plugin = Oft(block_size=32, exact=True, targets=["q_proj", "down_proj"])
    tolerance = 1e-4


def attached(**options):
    oft = Oft(**options)
    context = run_context(oft)
    return context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context).model


def turned(model):
    """The weight that a trained layer computes with, and the one it started from, both [out in]."""
    layer = model.get_submodule(QUERY)
    torch.nn.init.normal_(layer.oft_R["default"].weight, std=0.05, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return layer(torch.eye(128)).T, layer.base_layer.weight


def test_rows_keep_their_lengths_and_the_angles_between_them():
    weight, before = turned(attached(targets=["q_proj"], exact=True))
    assert float((weight - before).abs().max()) > 1e-2
    torch.testing.assert_close(weight @ weight.T, before @ before.T, atol=1e-5, rtol=1e-4)


def test_what_a_layer_computes_is_the_cayley_transform_of_its_parameters():
    model = attached(targets=["q_proj"], exact=True, block_size=32)
    weight, before = turned(model)
    vector = model.get_submodule(QUERY).oft_R["default"].weight.detach()  # [blocks, 32 x 31 / 2]
    skew = torch.zeros(4, 32, 32)
    rows, columns = torch.triu_indices(32, 32, 1)
    skew[:, rows, columns] = vector
    skew -= skew.mT.clone()
    identity = torch.eye(32)
    rotation = torch.linalg.solve(identity + skew, identity - skew)  # (I + S)^-1 (I - S)
    blocks = [torch.block_diag(*each) for each in (rotation, rotation.mT)]
    apart = min(float((weight - before @ block).abs().max()) for block in blocks)
    assert apart < 1e-5  # the direction of a rotation is a convention


def test_more_terms_are_nearer_to_a_rotation():
    off = []
    for terms in (2, 4, 8):
        weight, before = turned(attached(targets=["q_proj"], terms=terms))
        off.append(float((weight @ weight.T - before @ before.T).abs().max()))
    assert off[0] > 2 * off[1] > 4 * off[2]


def test_larger_blocks_hold_more_and_shared_ones_less():
    counts = {
        name: sum(each.numel() for each in trainable(attached(targets=["q_proj"], **options)).values())
        for name, options in {
            "small": {"block_size": 16},
            "large": {"block_size": 64},
            "shared": {"block_size": 16, "share_blocks": True},
        }.items()
    }
    assert counts == {"small": 2 * 8 * 120, "large": 2 * 2 * 2016, "shared": 2 * 120}


def test_the_limit_holds_rotations_near_the_identity():
    free, held = (turned(attached(targets=["q_proj"], **options)) for options in ({}, {"limit": 1e-4}))
    moved = [float((weight - before).norm()) for weight, before in (free, held)]
    assert moved[1] < 0.1 * moved[0]


def test_peft_s_own_dropout_does_nothing_which_is_why_there_is_none():
    """Where this passes no more, `dropout` can become an option."""
    config = peft.OFTConfig(oft_block_size=16, module_dropout=0.5, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(), config)
    turned(model)
    ids = torch.tensor([[5, 9, 17]])
    with torch.no_grad():
        assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


def test_modules_to_save_train_whole():
    model = attached(modules_to_save=["lm_head"])
    train_(model, steps=1)
    assert not torch.equal(
        model.base_model.model.lm_head.modules_to_save["default"].weight, tiny_model().lm_head.weight
    )


def test_what_is_saved_loads_without_tunekit(tmp_path):
    oft = Oft(targets=["q_proj"])
    context = run_context(oft)
    bundle = context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context)
    train_(bundle.model)
    bundle.save(bundle.model, tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path))
    torch.testing.assert_close(logits(again), logits(bundle.model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"block_size": 48},
            "use.oft.block_size: is 48, and model.layers.0.self_attn.q_proj has 128 inputs",
        ),
        ({"block_size": 48}, "choose 32 or 64"),
        ({"targets": ["q_prj"]}, "use.oft.targets: the model has no layer named 'q_prj'; did you mean 'q_proj'?"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options, message, estimate_with):
    for start in (lambda: attached(**options), lambda: estimate_with(Oft(**options))):
        with pytest.raises(PlanError) as error:
            start()
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exact": True, "terms": 3}, "terms means nothing with exact"),
        ({"block_size": 1}, "greater than or equal to 2"),
        ({"limit": 0.0}, "greater than 0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        Oft(**options)
