"""The factors that adapters start as, against numpy's decompositions, the papers' formulas and PEFT's own functions."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora.eva import get_eva_state_dict

from tunekit.errors import PlanError, TunekitError
from tunekit.testing import fake_machine, plan_for, prepared_items, run_context, tiny_bundle, tiny_model
from tunekit.testing.observing import logits, train_
from tunekit.testing.tiny import FP32
from tunekit_lora import Lora
from tunekit_lora_inits import Corda, Eva, Gaussian, Loftq, Loraga, Olora, Orthogonal
from tunekit_lora_inits.starts import best_factors, corda_factors, orthogonal_factors

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it
QUERY = "model.layers.0.self_attn.q_proj"
DATA = prepared_items(12)
SCALE = 2.0


def attached(start, data=DATA, bundle=None, **options):
    context = run_context(Lora(**{"rank": 4, **options}), start, data=data)
    return context.calls.own("tunekit_attach_adapter", bundle=bundle or tiny_bundle(), context=context)


def factors(model, name=QUERY):
    layer = model.get_submodule(f"base_model.model.{name}")
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


def batches(data=DATA):
    for item in data:
        (sequence,) = item.sequences
        labels = [token if weight else -100 for token, weight in zip(sequence.ids, sequence.weights, strict=True)]
        yield {"input_ids": torch.tensor([sequence.ids]), "labels": torch.tensor([labels])}


def inputs_of(name, supervised=False):
    """What a layer is given of all data, one matrix [tokens in] for each example, seen by a hook of the test's own."""
    model, seen = tiny_model(), []
    model.get_submodule(name).register_forward_pre_hook(lambda module, given: seen.append(given[0][0].detach()))
    with torch.no_grad():
        for batch in batches():
            model(input_ids=batch["input_ids"])
    masks = [batch["labels"][0] != -100 for batch in batches()]
    return [rows[mask] if supervised else rows for rows, mask in zip(seen, masks, strict=True)]


def in_the_same_space(one, other):
    """The smallest cosine between two spaces spanned by rows: 1 where they are the same."""
    first, second = (np.linalg.qr(np.asarray(each, np.float64).T)[0] for each in (one, other))
    return np.linalg.svd(first.T @ second, compute_uv=False).min()


def test_the_product_of_orthogonal_factors_is_zero_and_neither_is():
    down, up = orthogonal_factors(24, 40, 6)
    assert down.shape == (6, 40)
    assert up.shape == (24, 6)
    assert float((up @ down).abs().max()) < 1e-7  # values of about 0.1, six products each
    assert float(down.abs().max()) > 0.1 < float(up.abs().max())


def test_olora_is_what_peft_makes_of_the_same_weights():
    ours = attached(Olora()).model
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights="olora", target_modules="all-linear")
    theirs = peft.get_peft_model(tiny_model(), config)
    for name in (QUERY, "model.layers.1.mlp.down_proj"):
        for one, other in zip(factors(ours, name), factors(theirs, name), strict=True):
            torch.testing.assert_close(one, other)
        base = [each.get_submodule(f"base_model.model.{name}").base_layer.weight for each in (ours, theirs)]
        torch.testing.assert_close(*base)


def test_eva_starts_from_the_directions_in_which_supervised_inputs_vary_most():
    model = attached(Eva(items=12)).model
    for name in (QUERY, "model.layers.1.mlp.down_proj"):
        rows = np.concatenate(inputs_of(name, supervised=True)).astype(np.float64)
        expected = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:4]
        down, up = factors(model, name)
        cosines = np.abs((down.numpy() * expected).sum(1))
        assert cosines.min() > 1 - 1e-4, cosines
        assert not up.any()


def test_eva_s_directions_hold_as_much_of_the_inputs_as_those_that_peft_comes_to():
    """PEFT's are of randomised decompositions, which where values lie close together find less."""
    eva = peft.EvaConfig(rho=1.0, tau=0.9)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights="eva", eva_config=eva)
    whole = [{key: torch.cat([batch[key] for batch in batches()]) for key in ("input_ids", "labels")}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_eva_state_dict(tiny_model(), whole, config, show_progress_bar=False)
    model = attached(Eva(items=12)).model
    for name in (QUERY, "model.layers.1.mlp.up_proj"):
        rows = np.concatenate(inputs_of(name, supervised=True))
        held = [
            float(((rows - rows.mean(0)) @ each.numpy().T).var(0).sum())
            for each in (factors(model, name)[0], theirs[name])
        ]
        assert held[0] * 0.8 < held[1] <= held[0] * (1 + 1e-4), held


def test_eva_says_where_it_has_seen_too_little():
    with pytest.raises(TunekitError, match=r"eva has seen 12 tokens, too few for 16 .* raise use\.eva\.items"):
        attached(Eva(items=1), rank=16)


def test_corda_takes_the_part_that_matters_most_to_the_data_out_of_each_weight():
    """W C = U S V^T in double precision, by numpy."""
    for adapt, part in (("task", slice(None, 4)), ("rest", slice(-4, None))):
        model = attached(Corda(items=12, adapt=adapt)).model
        rows = [matrix.double() / matrix.max().abs() for matrix in inputs_of(QUERY, supervised=True)]
        covariance = sum(matrix.T @ matrix for matrix in rows).numpy() / len(rows)
        covariance += 0.01 * np.diag(covariance).mean() * np.eye(len(covariance))
        weight = tiny_model().get_submodule(QUERY).weight.detach().double().numpy()
        left, values, right = np.linalg.svd(weight @ covariance, full_matrices=False)
        expected = left[:, part] * values[part] @ right[part] @ np.linalg.inv(covariance)
        down, up = factors(model)
        found = SCALE * (up @ down).double().numpy()
        assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max(), adapt  # fp32, inverted covariance


def test_corda_s_factors_are_those_of_peft_for_the_same_covariance():
    pytest.importorskip("attr")
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="ipm"),
    )  # fmt: skip
    model = tiny_model()
    whole = replace(DATA, items=tuple(replace(item, sequences=_all_supervised(item)) for item in DATA))

    def run():
        for batch in batches():
            model(input_ids=batch["input_ids"])

    preprocess_corda(model, config, run_model=run)
    theirs = peft.get_peft_model(model, config)
    ours = attached(Corda(items=12), whole, targets=["q_proj"]).model
    products = [up @ down for down, up in (factors(theirs), factors(ours))]
    torch.testing.assert_close(*products, atol=2e-3, rtol=0)


def _all_supervised(item):
    return tuple(replace(sequence, weights=[1.0] * len(sequence)) for sequence in item.sequences)


def test_a_covariance_that_cannot_be_inverted_is_damped_until_it_can():
    flat = torch.zeros(8, 8)
    flat[0, 0] = 1e6
    down, up = corda_factors(torch.randn(6, 8), flat, 3, 1.0, True)
    assert bool(down.isfinite().all() and up.isfinite().all())


@pytest.mark.parametrize(
    ("direction", "right", "left"),
    [("ArB2r", [0, 1], [2, 3]), ("A2rBr", [2, 3], [0, 1]), ("ArBr", [1, 3], [0, 2])],
)
def test_loraga_starts_from_singular_vectors_of_the_gradient_of_the_data(direction, right, left):
    """With rank 2 of 4 directions: which A takes and which B. The gradient is the test's own."""
    name, plain = "model.layers.0.self_attn.k_proj", tiny_model()
    losses = [plain(input_ids=batch["input_ids"], labels=batch["labels"]).loss for batch in batches()]
    torch.stack(losses).mean().backward()  # as many supervised tokens in each
    gradient = plain.get_submodule(name).weight.grad.double().numpy()
    vectors = np.linalg.svd(gradient)
    model = attached(Loraga(items=12, direction=direction, gamma=4.0), rank=2).model
    down, up = factors(model, name)
    assert in_the_same_space(down, vectors[2][right]) > 0.99
    assert in_the_same_space(up.T, vectors[0].T[left]) > 0.99
    norm = 64**0.25 / 4.0**0.5
    np.testing.assert_allclose(np.linalg.norm(down, axis=1), norm, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(up, axis=0), norm, rtol=1e-4)


def test_loraga_says_where_there_is_nothing_to_learn():
    silent = replace(DATA, items=tuple(replace(item, sequences=_unsupervised(item)) for item in DATA))
    with pytest.raises(TunekitError, match="the examples have no token to learn"):
        attached(Loraga(items=2), silent)


def _unsupervised(item):
    return tuple(replace(sequence, weights=[0.0] * len(sequence)) for sequence in item.sequences)


def test_the_best_factors_are_the_truncated_decomposition():
    matrix = torch.randn(9, 7, generator=torch.Generator().manual_seed(1))
    down, up = best_factors(matrix, 3, SCALE)
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(SCALE * (up @ down), left[:, :3] * values[:3] @ right[:3], atol=1e-5)


@pytest.mark.parametrize("start", [Olora(), Corda(items=8), Loraga(items=8)], ids=lambda start: start.name)
def test_what_is_saved_is_a_plain_lora_for_the_model_as_it_was(start, tmp_path):
    """PEFT's own format of these starts loads onto a base that is not the one they were trained on."""
    bundle = attached(start)
    model = bundle.model
    train_(model)
    bundle.save(model, tmp_path / "adapter")
    plain = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(plain), logits(model), atol=2e-5, rtol=0)
    model.save_pretrained(str(tmp_path / "as_it_is"))
    wrong = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "as_it_is"))
    assert float((logits(wrong) - logits(model)).abs().max()) > 1e-2, "the trap that the conversion is for has gone"


@pytest.mark.parametrize("start", [Eva(), Corda(), Loraga()], ids=["eva", "corda", "loraga"])
def test_without_data_there_is_nothing_to_begin_by(start):
    with pytest.raises(TunekitError, match="begins by looking at the data of the stage, and there is no stage here"):
        attached(start, None)


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (Orthogonal(), {"rank": 3}, r"use\.lora\.rank: is 3, and orthogonal gives .*; choose 4"),
        (Orthogonal(), {"rank_pattern": {"q_proj": 5}}, r"use\.lora\.rank_pattern: is 5"),
        (Loraga(), {"rank": 33}, r"use\.lora\.rank: is 33, and loraga takes twice .*k_proj is 64 x 128; choose 32"),
        (Eva(), {"targets": ["embed_tokens"]}, "eva decomposes linear layers, and model.embed_tokens is an embedding"),
    ],
)
def test_what_a_start_cannot_do_is_refused_at_plan_time_and_when_attaching(start, options, message, estimate_with):
    for begin in (lambda: attached(start, **options), lambda: estimate_with(Lora(**options), start)):
        with pytest.raises(PlanError, match=message):
            begin()


@pytest.mark.parametrize("start", [Olora(), Corda(), Loraga(), Orthogonal()], ids=lambda start: type(start).__name__)
def test_16_bits_are_refused_at_plan_time(start):
    half = replace(FP32, weights="bfloat16", trainable="bfloat16")
    found = list(start.tunekit_check(plan=plan_for(Lora(), start, precision=half), machine=fake_machine()))
    assert found
    assert not list(start.tunekit_check(plan=plan_for(Lora(), start), machine=fake_machine()))


def test_an_adapter_has_one_start():
    with pytest.raises(PlanError, match=r"gaussian .* does not work with eva .*, which provides 'adapter\.start'"):
        plan_for(Lora(), Gaussian(), Eva())


def test_row_lengths_of_dora_are_those_of_the_weights_that_the_start_leaves():
    dora = pytest.importorskip("tunekit_dora").Dora()
    plan = plan_for(dora, Lora(), Olora())
    context = run_context(*(planned.plugin for planned in plan.plugins), data=DATA)
    model = context.calls.own("tunekit_attach_adapter", bundle=tiny_bundle(), context=context).model
    torch.testing.assert_close(logits(model), logits(tiny_model()), atol=2e-5, rtol=0)


def test_loftq_needs_a_quantiser():
    with pytest.raises(PlanError, match="loftq needs 'quantization'"):
        plan_for(Lora(), Loftq())
