"""DoRA on quantised weights (QDoRA): row lengths are those of the weights as they are stored."""

from __future__ import annotations

import pytest
import torch

import tunekit as tk
from tunekit.testing import conversations, save_tiny_model
from tunekit.testing.observing import logits


def test_on_4_bit_weights_it_starts_as_the_quantised_model_learns_and_comes_back(tmp_path):
    pytest.importorskip("tunekit_bnb")
    model = str(save_tiny_model(tmp_path / "tiny"))
    rows = [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in example.messages]}
        for example in conversations()
    ]
    use = {"precision": {"compute": "fp32"}, "bnb": {}, "lora": {"rank": 4}, "dora": {}}
    base, fresh = (
        logits(tk.open_model(model, {name: use[name] for name in names}).bundle.model)
        for names in (("precision", "bnb", "lora"), use)
    )
    torch.testing.assert_close(fresh, base, atol=1e-4, rtol=0)
    stage = {"sft": {"epochs": 2, "learning_rate": 5e-3, "batch": {"rows": 2}}}
    run = tk.Pipeline(model=model, data=rows, use=use, stages=[stage]).run(tmp_path / "run")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    assert sum(losses[4:]) < sum(losses[:4])
    opened = tk.open_run(tmp_path / "run").bundle.model
    torch.testing.assert_close(logits(opened), logits(run.bundle.model), atol=1e-5, rtol=0)
