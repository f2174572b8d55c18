"""Trackers store what a run tells: read back from what they wrote, in a process that they may change as they like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHILD = Path(__file__).parent / "tracked_child.py"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the child has found."""
    pytest.importorskip("wandb", reason="`nox -s tests` installs it")
    pytest.importorskip("mlflow", reason="`nox -s tests` installs it")
    folder = tmp_path_factory.mktemp("tracked")
    done = subprocess.run([sys.executable, CHILD, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_each_stage_is_a_run_of_the_tracker_with_its_own_losses_which_ends_with_it(tracker: str, told: Any) -> None:
    runs = told[tracker]
    assert set(runs) == {"demo-stage-1-sft", "demo-stage-2-sft"}
    for name, losses in zip(sorted(runs), told["losses"], strict=True):
        assert [step for step, _ in runs[name]["losses"]] == [1, 2]
        assert [value for _, value in runs[name]["losses"]] == pytest.approx(losses)
        assert runs[name]["ended"] == {"wandb": 0, "mlflow": "FINISHED"}[tracker]


def test_a_tracker_that_fails_is_named_and_the_other_ones_run_is_ended_as_failed(told: Any) -> None:
    assert told["failed"].startswith("TunekitError: stages.0.sft.log.trackers: MLflow failed: ")
    assert "see to its own settings" in told["failed"]
    assert told["failing"]["ended"] == 1
