"""Whole runs: opened again, interrupted in the first and the second stage, and continued to the same bits."""

from __future__ import annotations

import pytest
import torch

import tunekit as tk
from tunekit.errors import InterruptedRunError, PlanError
from tunekit.testing import conversations, save_tiny_model

SFT = {"epochs": 1, "learning_rate": 1e-2, "batch": {"rows": 2}, "checkpoint": {"every": 2}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def pipeline(model, pissa, stages=1, precision=None):
    rows = [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in example.messages]}
        for example in conversations()
    ]
    use = {"precision": precision or {"compute": "fp32"}, "lora": {"rank": 4, "dropout": 0.1}, "pissa": pissa}
    return tk.Pipeline(model=model, data=rows, use=use, stages=[{"sft": SFT}] * stages)


def weights(run):
    return {name: value.detach().clone() for name, value in run.bundle.model.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):
    run = pipeline(model, {"iterations": 2}, stages=2).run(tmp_path_factory.mktemp("uninterrupted") / "run")
    return run, weights(run)


def test_a_finished_run_opens_with_the_numbers_it_was_trained_to(uninterrupted, ids):
    run, expected = uninterrupted
    opened = tk.open_run(run.folder)
    assert same(weights(opened), expected)
    with torch.no_grad():
        assert torch.equal(opened.bundle.model(input_ids=ids).logits, run.bundle.model(input_ids=ids).logits)


@pytest.mark.parametrize("stage", [0, 1])
def test_an_interrupted_run_reaches_the_same_bits(stage, uninterrupted, model, tmp_path):
    whole, finished = pipeline(model, {"iterations": 2}, stages=2), []

    def stop(event):
        finished.extend([event.stage] if event.kind == "finished" else [])
        if len(finished) == stage and event.kind == "step" and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        whole.run(tmp_path / "run", watchers=[stop])
    torch.randn(5)
    assert same(weights(whole.resume(tmp_path / "run")), uninterrupted[1])


def test_16_bit_weights_are_refused_when_planning(model):
    with pytest.raises(PlanError, match=r"use\.pissa: .*set use\.precision\.weights: fp32"):
        pipeline(model, {}, precision={"compute": "bf16"}).plan(estimate=False)
    pipeline(model, {}, precision={"compute": "bf16", "weights": "fp32"}).plan(estimate=False)
