"""A run that has been trained opens where it could not be trained, and beside what has changed since."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tunekit as tk
from tunekit.errors import PlanError
from tunekit.record import Record
from tunekit.testing import save_tiny_model
from tunekit.testing.observing import logits

TALKS = [{"instruction": f"What is {number} and one?", "output": f"It is {number + 1}."} for number in range(8)]
SFT = {"steps": 2, "learning_rate": 2e-2, "batch": {"rows": 4}}
PRECISE = {"precision": {"compute": "fp32"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("opened") / "model"))


def changed(run: tk.Run, folder: Path, *pairs: tuple[str, str]) -> Path:
    """A copy of a run as it would have come from elsewhere: its recipe says something else."""
    shutil.copytree(run.folder, folder)
    recipe = folder / "recipe.yaml"
    text = recipe.read_text()
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    recipe.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("use", "before", "after", "told"),
    [
        ({"bnb": {"bits": 8}, "lora": {}}, "bits: 8", "bits: 8\n    threshold: 4.0", "means nothing on cpu"),
        ({"transformers": {"batch": 8}, "lora": {}}, "batch: 8", "attention: eager", "lays sequences end to end"),
        ({"loraplus": {}, "lora": {}}, "loraplus: {}", "liger: {}", "which need CUDA"),
        ({"attention": {"kind": "sdpa"}, "lora": {}}, "kind: sdpa", "kind: flash2", "FlashAttention runs on CUDA"),
        ({"bnb-optimizer": {}, "lora": {}}, "bnb-optimizer: {}", "bnb-optimizer:\n    paged: true", "paged"),
    ],
    ids=["bnb", "eager", "liger", "flash2", "paged"],
)
def test_what_only_training_asks_for_is_not_asked_of_a_trained_run(
    model: str, tmp_path: Path, use: Any, before: str, after: str, told: str
) -> None:
    run = tk.Pipeline(model, TALKS, {**PRECISE, **use}, [{"sft": SFT}]).run(tmp_path / "run")
    elsewhere = changed(run, tmp_path / "elsewhere", (before, after))
    with pytest.raises(PlanError, match=told):
        tk.Pipeline.from_recipe(Record.open(elsewhere).recipe).plan(estimate=False)
    torch.testing.assert_close(logits(tk.open_run(elsewhere).bundle.model), logits(run.bundle.model))


def test_a_model_as_it_is_takes_no_option_that_would_do_nothing(model: str) -> None:
    with pytest.raises(PlanError, match=r"use\.fp8: multiplies in float8"):
        tk.open_model(model, use={"fp8": {}})
    with pytest.raises(PlanError, match="means nothing on cpu"):
        tk.Session(model, use={"bnb": {"bits": 8, "threshold": 4.0}, "lora": {}})


def test_a_run_trained_in_float8_answers_by_ordinary_products_where_there_are_no_others(
    model: str, tmp_path: Path
) -> None:
    use = {**PRECISE, "fp8": {"emulate": True}, "full": {}}
    run = tk.Pipeline(model, TALKS, use, [{"sft": SFT}]).run(tmp_path / "run")
    elsewhere = changed(run, tmp_path / "elsewhere", ("emulate: true", "emulate: false"))
    with pytest.raises(PlanError, match=r"use\.fp8: multiplies in float8"):
        tk.Pipeline.from_recipe(Record.open(elsewhere).recipe).plan(estimate=False)
    opened = logits(tk.open_run(elsewhere).bundle.model)
    rounded = logits(run.bundle.model)
    assert 0 < float((opened - rounded).norm()) < 0.1 * float(rounded.norm())


def test_a_model_that_cannot_be_loaded_is_still_refused(model: str, tmp_path: Path) -> None:
    run = tk.Pipeline(model, TALKS, {**PRECISE, "lora": {}}, [{"sft": SFT}]).run(tmp_path / "run")
    elsewhere = changed(run, tmp_path / "elsewhere", (model, str(tmp_path / "gone")))
    with pytest.raises(PlanError, match="gone"):
        tk.open_run(elsewhere)
