"""Killed with -9 through the front door and resumed by `tunekit resume`: the numbers of a run that nothing stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tunekit as tk
from tunekit.cli.app import run as program
from tunekit.testing import save_tiny_model
from tunekit.values import MEASURED

CHILD = """
import json, os, signal, sys
import tunekit as tk

given = json.loads(sys.argv[1])

def watch(event):
    if [event.kind, event.step] == given["die"]:
        os.kill(os.getpid(), signal.SIGKILL)

tk.Pipeline(**given["pipeline"]).run(given["folder"], watchers=[watch])
"""
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {number} and {number}?"},
            {"role": "assistant", "content": f"It is {number + number}, plainly."},
        ]
    }
    for number in range(26)
]
STAGE = {
    "epochs": 2,
    "learning_rate": 5e-3,
    "batch": {"rows": 2, "accumulation": 2},
    "checkpoint": {"every": 3},
    "evaluate": {"share": 0.2, "every": 4},
}
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "dropout": 0.1}, "neftune": {}},
    "galore": {"galore": {"rank": 8, "update_interval": 4}, "precision": {"compute": "fp32"}},
}
POINTS = {"lora": [["evaluated", 8], ["step", 11]], "galore": [["step", 5], ["saved", 9]]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("killed") / "model"))


@pytest.mark.parametrize("use", sorted(RECIPES))
def test_a_killed_run_is_resumed_to_the_same_bits(use: str, model: str, tmp_path: Path) -> None:
    pipeline = {"model": model, "data": ROWS, "use": RECIPES[use], "stages": [{"sft": STAGE}], "seed": 7}
    tk.Pipeline(**pipeline).run(tmp_path / "whole")
    for number, point in enumerate(POINTS[use]):
        folder = tmp_path / f"killed-{number}"
        given = json.dumps({"pipeline": pipeline, "folder": str(folder), "die": point})
        child = subprocess.run([sys.executable, "-c", CHILD, given], capture_output=True, check=False)
        assert child.returncode == -signal.SIGKILL
        assert json.loads((folder / "run.json").read_text())["status"] == "running"
        assert program(["resume", str(folder), "--json"]) == 0
        assert json.loads((folder / "run.json").read_text())["status"] == "finished"
        assert numbers(folder) == numbers(tmp_path / "whole"), point
        assert files(folder) == files(tmp_path / "whole"), point


def numbers(folder: Path) -> list[dict[str, Any]]:
    """Every metric line but what measures time and memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "step" for line in lines) == 12
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def files(folder: Path) -> dict[str, Any]:
    """The bytes of the trained weights, and the optimiser's state in the newest checkpoint."""
    import torch

    stage = folder / "stage-1-sft"
    (weights,) = [*stage.glob("adapter/adapter_model.safetensors"), *stage.glob("model/model.safetensors")]
    state = torch.load(stage / "checkpoints" / "step-9" / "optimizer.pt", weights_only=True)["state"]
    plain = {
        f"{index}.{name}": value.tolist() if torch.is_tensor(value) else value
        for index, values in state.items()
        for name, value in values.items()
    }
    return {"weights": weights.read_bytes(), **plain}
