"""Optimisers of bitsandbytes: the formulas in 32 bits, near them in 8, and an estimate that is right."""

from __future__ import annotations

import math

import pydantic
import pytest
import torch

from tunekit.testing import estimate_for, plan_for, stage_context, tiny_bundle
from tunekit.values import OptimizerSettings, Precision
from tunekit_bnb_optimizer import BnbOptimizer
from tunekit_lora import Lora
from tunekit_train.testing import check_resumes

CUDA = Precision("cuda", "float32", "float32", "float32", "a test")
BETAS = {"adamw": (0.9, 0.999), "lion": (0.9, 0.99), "ademamix": (0.9, 0.999)}


def made(parameters, folder, steps=0, weight_decay=0.0, **options):
    plugin = BnbOptimizer(**options)
    return plugin.tunekit_optimizer(
        bundle=None,
        named_parameters=[(f"weight {number}", each) for number, each in enumerate(parameters)],
        settings=OptimizerSettings(1e-2, weight_decay, steps),
        context=stage_context(plugin, folder=folder),
    )


def gradient(step):
    return torch.randn(80, 64, generator=torch.Generator().manual_seed(step))


def followed(folder, steps=6, total=0, **options):
    weight = torch.nn.Parameter(torch.ones(80, 64))
    optimizer = made([weight], folder, total, **options)
    for step in range(steps):
        weight.grad = gradient(step)
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


def by_formula(kind, steps=6, total=0, beta1=None, beta2=None, beta3=0.9999, alpha=5.0, eps=1e-8, weight_decay=0.0):
    """Each paper's update, in float64."""
    beta1, beta2 = beta1 or BETAS[kind][0], beta2 or BETAS[kind][1]
    weight, mean, slow, square = torch.ones(80, 64).double(), 0.0, 0.0, 0.0
    for step in range(1, steps + 1):
        g = gradient(step - 1).double()
        weight = weight * (1 - 1e-2 * weight_decay)
        if kind == "lion":
            weight = weight - 1e-2 * (beta1 * mean + (1 - beta1) * g).sign()
            mean = beta2 * mean + (1 - beta2) * g
            continue
        mean, square = beta1 * mean + (1 - beta1) * g, beta2 * square + (1 - beta2) * g**2
        root = (square / (1 - beta2**step)).sqrt() + eps
        if kind == "ademamix":
            late, weight_of_slow = beta3, alpha
            if total:
                share = step / total
                logs = math.log(beta1), math.log(beta3)
                late = min(math.exp(logs[0] * logs[1] / ((1 - share) * logs[1] + share * logs[0])), beta3)
                weight_of_slow = min(share * alpha, alpha)
            slow = late * slow + (1 - late) * g
        extra = weight_of_slow * slow if kind == "ademamix" else 0.0
        weight = weight - 1e-2 * (mean / (1 - beta1**step) + extra) / root
    return weight.float()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("adamw", {}),
        ("adamw", {"beta1": 0.5, "beta2": 0.9, "eps": 1e-2, "weight_decay": 0.1}),
        ("lion", {"weight_decay": 0.1}),
        ("lion", {"beta1": 0.5, "beta2": 0.9}),
        ("ademamix", {"ramp_up": False}),
        ("ademamix", {"ramp_up": False, "beta3": 0.9, "alpha": 2.0}),
        ("ademamix", {"total": 10}),
    ],
    ids=str,
)
def test_in_32_bits_a_step_is_the_papers_and_in_8_bits_it_is_near(tmp_path, kind, options):
    expected = by_formula(kind, **{name: value for name, value in options.items() if name != "ramp_up"})
    wide, states = followed(tmp_path, kind=kind, bits=32, **options)
    assert states["state1"].dtype == torch.float32
    apart = (wide - expected).abs()
    if kind == "lion":  # the sign of what is nearly zero may differ
        assert (apart > 1e-5).float().mean() < 1e-3
    else:
        torch.testing.assert_close(wide, expected, atol=2e-5, rtol=1e-4)
    narrow, states = followed(tmp_path, kind=kind, bits=8, **options)
    assert states["state1"].dtype == torch.uint8
    moved = (expected - 1).norm()
    assert 0 < (narrow - expected).norm() < (0.3 if kind == "lion" else 0.1) * moved


def test_parameters_smaller_than_asked_keep_wide_states(tmp_path):
    for smallest, dtype in ((80 * 64, torch.uint8), (80 * 64 + 1, torch.float32)):
        assert followed(tmp_path, smallest=smallest)[1]["state1"].dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lion", "eps": 1e-6}, "eps means nothing with lion"),
        ({"alpha": 2.0, "beta3": 0.9}, "alpha, beta3 means nothing with adamw"),
        ({"bits": 32, "smallest": 1}, "smallest means nothing with 32 bits"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        BnbOptimizer(**options)


def test_pages_are_refused_where_bitsandbytes_would_go_on_without_and_reach_it_elsewhere(tmp_path):
    plugin = BnbOptimizer(paged=True)
    plan = plan_for(plugin)
    (problem,) = plugin.tunekit_check(plan, plan.machine)
    assert problem.where == "use.bnb-optimizer.paged"
    card = plan_for(plugin, precision=CUDA)
    assert not plugin.tunekit_check(card, card.machine)
    assert made([torch.nn.Parameter(torch.ones(2, 2))], tmp_path, paged=True).is_paged


def test_devices_without_kernels_are_refused():
    plugin = BnbOptimizer()
    plan = plan_for(plugin, precision=Precision("mps", "float32", "float32", "float32", "a test"))
    (problem,) = plugin.tunekit_check(plan, plan.machine)
    assert "no kernels for a step on mps" in problem.message


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_paged_states_train_on_an_accelerator(tmp_path):
    weight = torch.nn.Parameter(torch.ones(400, 300, device="cuda"))
    optimizer = made([weight], tmp_path, paged=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.state[weight]["state1"].is_paged
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.99), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["adamw", "lion", "ademamix"])
@pytest.mark.parametrize("options", [{}, {"bits": 32}, {"smallest": 0}], ids=str)
def test_the_estimate_counts_the_bytes_of_the_state(tmp_path, kind, options):
    model = tiny_bundle().model
    optimizer = made(list(model.parameters()), tmp_path, kind=kind, **options)
    model(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    optimizer.step()
    held = [value for state in optimizer.state.values() for name, value in state.items() if "qmap" not in name]
    expected = sum(each.numel() * each.element_size() for each in held if torch.is_tensor(each))
    estimate = estimate_for(BnbOptimizer(kind=kind, **options))
    assert estimate.memory["optimiser"] == expected


def test_the_step_of_an_adapter_is_counted_too():
    estimate = estimate_for(Lora(rank=4), BnbOptimizer(bits=32))
    assert estimate.memory["optimiser"] == 8 * estimate.trainable


@pytest.mark.parametrize("kind", ["adamw", "ademamix"])
def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(tmp_path, kind):
    check_resumes(BnbOptimizer(kind=kind, smallest=0), tmp_path)
