"""A finished run that nobody holds has given its model back: whoever trains again in a notebook has the memory."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import torch

import tunekit as tk
from tunekit.testing import save_tiny_model

TALKS = [{"instruction": f"What is {number}?", "output": f"It is {number}."} for number in range(4)]
PAIRS = [{"prompt": f"What is {number}?", "chosen": f"It is {number}.", "rejected": "No."} for number in range(4)]
SMALL: dict[str, Any] = {"steps": 1, "batch": {"rows": 2}, "checkpoint": {"every": 0}}
ANSWERS = {"rollout": {"prompts": 2, "epochs": 1, "max_new_tokens": 4}}


def holding() -> weakref.WeakSet[Any]:
    """Modules of this process that hold weights."""
    gc.collect()
    modules = (each for each in gc.get_objects() if issubclass(type(each), torch.nn.Module))
    return weakref.WeakSet(each for each in modules if any(True for _ in each.parameters(recurse=False)))


def test_no_weights_outlive_a_run_that_was_dropped(tmp_path: Path) -> None:
    model = str(save_tiny_model(tmp_path / "model"))
    before = holding()

    def run(name: str, use: dict[str, Any], data: list[dict[str, str]], **options: Any) -> tuple[int, Path | None]:
        stages = [{name: {**SMALL, **options}}]
        run = tk.Pipeline(model, data, use, stages).run(tmp_path / f"{name}-{'-'.join(use)}")
        return len(holding() - before), run.adapter

    lora = {"lora": {"rank": 2}}
    for use, name, data in ((lora, "sft", TALKS), ({"full": {}}, "sft", TALKS), (lora, "reward", PAIRS)):
        during, adapter = run(name, use, data)
        assert during > 0, "else nothing was looked for"
        assert [type(each).__name__ for each in holding() - before] == [], f"after {name} with {', '.join(use)}"
    during, _ = run("ppo", lora, TALKS, reward={"adapter": str(adapter)}, **ANSWERS)
    assert during > 0
    assert [type(each).__name__ for each in holding() - before] == [], "after ppo"
