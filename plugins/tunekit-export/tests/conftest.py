"""Runs on a tiny model that every test of this folder exports: LoRA, on a base that is stored densely."""

from __future__ import annotations

import pytest

import tunekit as tk
from tunekit.testing import save_tiny_model

ROWS = [
    {"instruction": f"What is {number} and one?", "output": f"It is {number + 1}, as everybody knows."}
    for number in range(12)
]
SFT = {"epochs": 4, "learning_rate": 1e-2, "batch": {"rows": 4}, "evaluate": {"share": 0.25}}


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of the tiny model."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def train(base):
    """Train the tiny model into a folder: `train(folder, lora={"rank": 4})`."""

    def run(folder, model=base, stages=({"sft": SFT},), export=(), **use):
        use = {"precision": {"compute": "fp32"}, **(use or {"lora": {"rank": 4}})}
        return tk.Pipeline(model=str(model), data=ROWS, use=use, stages=list(stages), export=list(export)).run(folder)

    return run


@pytest.fixture(scope="session")
def run(train, tmp_path_factory):
    """A run with LoRA."""
    return train(tmp_path_factory.mktemp("lora") / "run")
