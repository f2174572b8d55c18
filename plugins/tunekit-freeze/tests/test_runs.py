"""Whole runs: trained, opened again, interrupted and continued over two stages, and refused on quantised weights."""

from __future__ import annotations

import pytest
import torch

import tunekit as tk
from tunekit.errors import InterruptedRunError, PlanError
from tunekit.testing import conversations, save_tiny_model
from tunekit_freeze import Freeze, Full

SFT = {"epochs": 1, "learning_rate": 1e-2, "batch": {"rows": 2}, "checkpoint": {"every": 2}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def pipeline(model, plugin, stages=1, **use):
    rows = [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in example.messages]}
        for example in conversations()
    ]
    named = {type(plugin).__name__.lower(): plugin.config.model_dump(mode="json", exclude_unset=True)}
    use = {"precision": {"compute": "fp32"}, **named, **use}
    return tk.Pipeline(model=model, data=rows, use=use, stages=[{"sft": SFT}] * stages)


def weights(run):
    return {name: value.detach().clone() for name, value in run.bundle.model.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


PLUGINS = [Freeze(layers=1, extra=["norm"]), Freeze(expand=1), Full(freeze_embeddings=True)]


@pytest.mark.parametrize("plugin", PLUGINS, ids=str)
def test_a_finished_run_opens_with_the_numbers_it_was_trained_to(plugin, model, ids, tmp_path):
    run = pipeline(model, plugin).run(tmp_path / "run")
    with torch.no_grad():
        expected = run.bundle.model(input_ids=ids).logits
        opened = tk.open_run(tmp_path / "run").bundle.model
        assert torch.equal(opened(input_ids=ids).logits, expected)
    assert opened.config.num_hidden_layers == run.bundle.model.config.num_hidden_layers


@pytest.mark.parametrize("plugin", PLUGINS, ids=str)
def test_a_run_interrupted_in_its_second_stage_reaches_the_same_bits(plugin, model, tmp_path):
    whole = pipeline(model, plugin, stages=2)
    expected = weights(whole.run(tmp_path / "uninterrupted"))
    finished = []

    def stop(event):
        finished.extend([event.stage] if event.kind == "finished" else [])
        if finished and event.kind == "step" and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        whole.run(tmp_path / "run", watchers=[stop])
    assert same(weights(whole.resume(tmp_path / "run")), expected)


@pytest.mark.parametrize("plugin", [Freeze(), Full()], ids=str)
def test_quantised_weights_are_refused_when_planning(plugin, model):
    pytest.importorskip("tunekit_bnb")
    with pytest.raises(PlanError, match=r"does not work with bnb .*, which provides 'quantization'"):
        pipeline(model, plugin, bnb={}).plan()
