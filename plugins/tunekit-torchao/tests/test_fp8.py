"""Products in float8: the numbers of the paper, the three recipes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tunekit as tk
from tunekit.errors import InterruptedRunError, PlanError
from tunekit.testing import (
    FP32,
    PatchSuite,
    conversations,
    default_plugin,
    estimate_for,
    fake_machine,
    plan_for,
    tiny_bundle,
)
from tunekit.testing.observing import gradients, logits, train_
from tunekit.testing.options import shows
from tunekit.values import Accelerator, Precision
from tunekit_freeze import Freeze, Full
from tunekit_lora import Lora
from tunekit_sft import Sft
from tunekit_torchao import Fp8
from tunekit_torchao.float8 import problems

ROWS = [{"messages": [{"role": t.role, "content": t.content} for t in e.messages]} for e in conversations()]
PRECISE = default_plugin("tunekit_precision", compute="fp32")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class TestEmulated(PatchSuite):
    plugin = Fp8(emulate=True)
    changes = frozenset({"training", "evaluation", "gradients"})


def rounded(matrix: torch.Tensor, kind: torch.dtype, dim: int | None) -> torch.Tensor:
    """Each of the values that share a scale as a float of 8 bits, the largest of them as the largest there is."""
    largest = matrix.abs().max() if dim is None else matrix.abs().amax(dim, keepdim=True)
    scale = torch.finfo(kind).max / largest.double()
    if dim is not None:  # rows: powers of two
        scale = torch.exp2(torch.floor(torch.log2(scale)))
    return ((matrix.double() * scale).float().to(kind).double() / scale).float()


def layer_of(**options: Any) -> Any:
    bundle = tiny_bundle()
    Fp8(emulate=True, **options).tunekit_patch(bundle=bundle)
    return bundle.model.model.layers[0].mlp.up_proj.requires_grad_(True)


@shows("recipe", "emulate")
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_products_and_gradients_are_those_of_matrices_rounded_by_hand(recipe: Any) -> None:
    layer, generator = layer_of(recipe=recipe), torch.Generator().manual_seed(0)
    given = torch.randn(24, layer.in_features, generator=generator, requires_grad=True)
    back = torch.randn(24, layer.out_features, generator=generator)
    weight, row = layer.weight.detach(), None if recipe == "tensorwise" else 1
    said = layer(given)
    said.backward(back)
    torch.testing.assert_close(said, rounded(given.detach(), E4M3, row) @ rounded(weight, E4M3, row).T)
    kind = E5M2 if recipe == "tensorwise" else E4M3
    columns = {"tensorwise": None, "rowwise": 0, "rowwise_with_gw_hp": None}[recipe]
    if recipe == "rowwise_with_gw_hp":
        largest = weight.abs().max().double()
        scale = torch.exp2(torch.floor(torch.log2(448 / largest)))  # one for the matrix, a power of two as well
        below = ((weight.double() * scale).float().to(E4M3).double() / scale).float()
    else:
        below = rounded(weight, E4M3, columns)
    torch.testing.assert_close(given.grad, rounded(back, kind, row) @ below)
    learnt = (back, given.detach())
    if recipe != "rowwise_with_gw_hp":
        learnt = (rounded(back, kind, columns), rounded(given.detach(), E4M3, columns))
    torch.testing.assert_close(layer.weight.grad, learnt[0].T @ learnt[1])


@shows("skip")
def test_skipped_layers_and_those_of_odd_sides_stay() -> None:
    bundle = tiny_bundle()
    layers = bundle.model.model.layers
    layers[1].mlp.up_proj = torch.nn.Linear(128, 24, bias=False)
    report = Fp8(emulate=True, skip=["q_proj"]).tunekit_patch(bundle=bundle)
    stays = [layers[0].self_attn.q_proj, layers[1].self_attn.q_proj, layers[1].mlp.up_proj, bundle.model.lm_head]
    assert {type(layer) for layer in stays} == {torch.nn.Linear}
    assert report.details["layers"] == 11
    with pytest.raises(PlanError, match=r"use\.fp8\.skip: the model has no linear layer named 'q_prj'; did you mean"):
        estimate_for(Fp8(emulate=True, skip=["q_prj"]))


def test_under_autocast_a_layer_answers_in_its_dtype_on_any_device() -> None:
    layer = layer_of(recipe="rowwise_with_gw_hp")
    given = torch.randn(8, layer.in_features, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        said = layer(given)
    assert said.dtype == torch.bfloat16
    said.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_what_a_sequence_is_given_by_rows_does_not_depend_on_those_beside_it() -> None:
    layer, given = layer_of(recipe="rowwise"), torch.randn(6, 128)
    loud = torch.cat((given, 50 * torch.randn(2, 128)))
    torch.testing.assert_close(layer(loud)[:6], layer(given))
    layer = layer_of(recipe="tensorwise")
    assert not torch.allclose(layer(loud)[:6], layer(given), rtol=1e-3)


def test_every_weight_trains_and_undoing_gives_the_very_weights_back() -> None:
    bundle = tiny_bundle()
    plain = logits(bundle.model)
    named = dict(bundle.model.named_parameters())
    report = Fp8(emulate=True).tunekit_patch(bundle=bundle)
    assert dict(bundle.model.named_parameters()).keys() == named.keys()
    assert report.undo is not None
    report.undo()
    assert bool((logits(bundle.model) == plain).all())
    Fp8(emulate=True).tunekit_patch(bundle=bundle)
    model = bundle.model.requires_grad_(True)
    assert gradients(model).keys() == named.keys()
    losses = train_(model, steps=6, learning_rate=2e-3)
    assert losses[-1] < losses[0]


def test_a_run_learns_is_resumed_to_the_bit_and_leaves_an_ordinary_model(folder: Any, tmp_path: Any) -> None:
    stage = {"sft": {"epochs": 2, "learning_rate": 5e-3, "checkpoint": {"every": 1}}}
    use = [Fp8(emulate=True), Freeze(layers=1), PRECISE]
    made = tk.Pipeline(model=str(folder), data=ROWS, use=use, stages=[stage])
    whole = made.run(tmp_path / "whole")

    def stop(event: Any) -> None:
        if event.kind == "saved" and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
        made.run(tmp_path / "parts", watchers=[stop])
    resumed = made.resume(tmp_path / "parts")
    losses = [line["loss"] for line in whole.metrics if line["kind"] == "step"]
    assert losses == [line["loss"] for line in resumed.metrics if line["kind"] == "step"]
    assert losses[-1] < losses[0]
    assert bool((logits(resumed.bundle.model) == logits(whole.bundle.model)).all())
    assert whole.export("merged").verification.kl < 1e-2


def card(*capability: int) -> Accelerator:
    return Accelerator("cuda", "nvidia", "a card", 80 << 30, capability)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "capability", "compute", "told"),
    [
        ({}, (8, 9), "bfloat16", None),
        ({}, (8, 0), "bfloat16", "needs an NVIDIA card of compute capability 8.9"),
        ({"recipe": "rowwise"}, (8, 9), "bfloat16", "rowwise needs an NVIDIA card of compute capability 9.0"),
        ({"recipe": "rowwise"}, (9, 0), "bfloat16", None),
        ({}, (9, 0), "float16", "adds products in float8 up in bf16, and this run computes in float16"),
        ({"emulate": True}, (8, 0), "float32", None),
    ],
)
def test_hardware_is_asked_before_anything_is_loaded(options: Any, capability: Any, compute: Any, told: Any) -> None:
    precision = Precision("cuda", compute, compute, "float32", "a test")
    plan = plan_for(Fp8(**options), Sft(), machine=fake_machine(card(*capability)), precision=precision)
    found = [problem.message for problem in problems(Fp8(**options).config, plan, fake_machine(card(*capability)))]
    assert [told in message for message in found] == ([] if told is None else [True])


def test_a_cpu_beside_such_a_card_is_refused_too() -> None:
    machine = fake_machine(card(9, 0))
    (problem,) = problems(Fp8().config, plan_for(Fp8(), Sft(), machine=machine, precision=FP32), machine)
    assert "emulate: true" in problem.remedy


@pytest.mark.parametrize(
    ("use", "stage"),
    [
        ([Fp8(emulate=True), Lora(rank=4)], "sft"),
        ([Fp8(emulate=True), Full()], "dpo"),
        ([Fp8(emulate=True), Full()], "kto"),
    ],
    ids=["lora", "dpo", "kto"],
)
def test_what_would_not_act_or_would_be_compared_wrongly_is_refused(use: Any, stage: str) -> None:
    with pytest.raises(PlanError, match=r"fp8 \(tunekit-torchao .*\) does not work with"):
        tk.Pipeline(model="tiny", data=ROWS, use=use, stages=[{stage: {}}]).plan()


def test_a_policy_starts_as_its_reference_where_each_row_has_a_scale(folder: Any, tmp_path: Any) -> None:
    pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea at all."} for n in range(8)]
    stage = {"dpo": {"steps": 1, "learning_rate": 1e-5, "batch": {"rows": 4}, "evaluate": {"share": 0}}}
    use = [Fp8(emulate=True, recipe="rowwise"), Full(), PRECISE]
    run = tk.Pipeline(model=str(folder), data=pairs, use=use, stages=[stage]).run(tmp_path / "run")
    first = next(line for line in run.metrics if line["kind"] == "step")
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
