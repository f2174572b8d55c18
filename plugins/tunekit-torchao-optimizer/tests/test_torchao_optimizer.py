"""AdamW of torchao: plain AdamW where nothing is coded, near it where it is, and an estimate that is right."""

from __future__ import annotations

import pydantic
import pytest
import torch

from tunekit.testing import estimate_for, plan_for, stage_context, tiny_bundle
from tunekit.values import OptimizerSettings, Precision
from tunekit_torchao_optimizer import TorchaoOptimizer
from tunekit_train.testing import check_resumes

PURE = Precision("cpu", "bfloat16", "bfloat16", "bfloat16", "a test")


def made(parameters, folder, rate=1e-2, weight_decay=0.0, **options):
    plugin = TorchaoOptimizer(**options)
    return plugin.tunekit_optimizer(
        bundle=None,
        named_parameters=[(f"weight {number}", each) for number, each in enumerate(parameters)],
        settings=OptimizerSettings(rate, weight_decay),
        context=stage_context(plugin, folder=folder),
    )


def followed(make, shape=(80, 64), steps=6):
    weight = torch.nn.Parameter(torch.ones(shape))
    optimizer = make([weight])
    for step in range(steps):
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return weight.detach()


OPTIONS = [{}, {"beta1": 0.5}, {"beta2": 0.9}, {"eps": 1e-2}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_small_parameters_take_the_steps_of_adamw(tmp_path, options):
    given = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, **options}
    ours = followed(lambda each: made(each, tmp_path, weight_decay=0.1, **options), (8, 4))
    betas = (given["beta1"], given["beta2"])
    theirs = followed(lambda each: torch.optim.AdamW(each, 1e-2, betas, given["eps"], weight_decay=0.1), (8, 4))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("states", "near"), [("8bit", 0.05), ("4bit", 0.35), ("fp8", 0.1)])
def test_coded_states_move_weights_nearly_as_adamw_does(tmp_path, states, near):
    theirs = followed(lambda each: torch.optim.AdamW(each, 1e-2, weight_decay=0.0))
    apart = (followed(lambda each: made(each, tmp_path, states=states)) - theirs).norm() / (theirs - 1).norm()
    assert near / 50 < apart < near


@pytest.mark.parametrize(("states", "block"), [("8bit", 64), ("4bit", 32), ("fp8", 64)])
def test_a_smaller_block_has_a_smaller_error(tmp_path, states, block):
    theirs = followed(lambda each: torch.optim.AdamW(each, 1e-2, weight_decay=0.0))
    errors = [
        (followed(lambda each, size=size: made(each, tmp_path, states=states, block=size)) - theirs).norm()
        for size in (block, 2560)
    ]
    assert errors[0] < errors[1]


def test_a_step_too_small_for_bfloat16_is_not_lost_where_it_is_rounded_at_random(tmp_path):
    after = {}
    for chosen in (False, True):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.ones(100, 100, dtype=torch.bfloat16))
        optimizer = made([weight], tmp_path, rate=1e-4, stochastic_rounding=chosen)
        for _ in range(10):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        after[chosen] = weight.detach().float()
    assert torch.equal(after[False], torch.ones(100, 100))
    assert after[True].mean().item() == pytest.approx(
        1 - 10 * 1e-4, abs=2e-4
    )  # steps of 1/256 by chance, 10,000 numbers


def test_rounding_at_random_is_refused_where_nothing_is_rounded():
    plugin = TorchaoOptimizer(stochastic_rounding=True)
    plan = plan_for(plugin)
    (problem,) = plugin.tunekit_check(plan, plan.machine)
    assert problem.where == "use.torchao-optimizer.stochastic_rounding"
    pure = plan_for(plugin, precision=PURE)
    assert not plugin.tunekit_check(pure, pure.machine)


def test_several_processes_would_round_their_weights_apart():
    assert "processes" in TorchaoOptimizer(stochastic_rounding=True).conflicts
    assert not TorchaoOptimizer().conflicts


def test_a_step_is_compiled_where_that_is_asked_for_and_only_there(tmp_path, monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **given: original(function, backend=backend, **given))
    torch.compiler.reset()
    eager = followed(lambda each: made(each, tmp_path), steps=2)
    assert not compiled
    traced = followed(lambda each: made(each, tmp_path, compile=True), steps=2)
    assert compiled
    torch.testing.assert_close(eager, traced)


@pytest.mark.parametrize("options", [{}, {"states": "4bit"}, {"states": "fp8"}, {"block": 96}], ids=str)
def test_the_estimate_counts_the_bytes_of_the_state(tmp_path, options):
    model = tiny_bundle().model
    optimizer = made(list(model.parameters()), tmp_path, **options)
    model(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    parts = [getattr(each, name) for each in moments for name in getattr(each, "tensor_attrs", ())]
    plain = [each for each in moments if not hasattr(each, "tensor_attrs")]
    expected = sum(each.numel() * each.element_size() for each in (*parts, *plain))
    assert bool(parts) == ("block" not in options)  # no weight of this model is a multiple of 96
    assert estimate_for(TorchaoOptimizer(**options)).memory["optimiser"] == expected


@pytest.mark.parametrize("options", [{"states": "2bit"}, {"block": 3}, {"block": 0}], ids=str)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        TorchaoOptimizer(**options)


@pytest.mark.parametrize("states", ["8bit", "4bit", "fp8"])
def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(tmp_path, states):
    check_resumes(TorchaoOptimizer(states=states), tmp_path)
