"""Killed with -9 and resumed in a fresh process: bit for bit what the uninterrupted run reaches."""

from __future__ import annotations

import json
import multiprocessing
import runpy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

CHILD = str(Path(__file__).with_name("killed_child.py"))
LIBRARIES = ["peft", "tunekit_train.engine", "tunekit_train.testing", "matplotlib.pyplot"]
"""What a run imports; accelerate brings deepspeed as well, wherever it is installed."""
POINTS = ("mid-accumulation", "checkpoint write", "before the rename", "evaluation", "second epoch")
WEIGHTS = {"lora": "adapter/adapter_model.safetensors", "full": "model/model.safetensors"}


@pytest.fixture(scope="module")
def processes() -> Any:
    """Fresh processes from a server that has imported the libraries and done nothing else."""
    server = multiprocessing.get_context("forkserver")
    aside = [] if torch.cuda.is_available() else ["deepspeed"]  # it may open the device, which no fork survives
    server.set_forkserver_preload([*LIBRARIES, *aside])
    return server


def run(
    processes: Any,
    folder: Path,
    point: str | None,
    resume: bool,
    model_kind: str,
    log_every: int = 1,
    data: str = "memory",
) -> int:
    folder.mkdir(exist_ok=True)
    given = {"folder": folder, "point": point, "resume": resume, "model_kind": model_kind, "log_every": log_every}
    given["data"] = data
    child = processes.Process(target=runpy.run_path, args=(CHILD,), kwargs={"init_globals": given})
    child.start()
    child.join(120)
    assert child.exitcode is not None, "the child hangs"
    return int(child.exitcode)


@pytest.fixture(scope="module")
def uninterrupted(processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of runs that nothing stopped, made once."""
    done: dict[tuple[str, int, str], Path] = {}

    def folder(model_kind: str, log_every: int = 1, data: str = "memory") -> Path:
        key = (model_kind, log_every, data)
        if key not in done:
            done[key] = tmp_path_factory.mktemp("uninterrupted")
            assert run(processes, done[key], None, False, model_kind, log_every, data) == 0
        return done[key]

    return folder


def assert_same_run(left: Path, right: Path, model_kind: str) -> None:
    assert (left / WEIGHTS[model_kind]).read_bytes() == (right / WEIGHTS[model_kind]).read_bytes()
    assert (left / "metrics.jsonl").read_text() == (right / "metrics.jsonl").read_text()
    assert (left / "result.json").read_text() == (right / "result.json").read_text()
    states = [torch.load(folder / "optimizer.pt", weights_only=True) for folder in (left, right)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for index, state in states[0]["state"].items():
        for name, value in state.items():
            other = states[1]["state"][index][name]
            same = torch.equal(value, other) if torch.is_tensor(value) else value == other
            assert same, (index, name)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_reaches_the_same_numbers(point: str, processes: Any, uninterrupted: Any, tmp_path: Path) -> None:
    assert run(processes, tmp_path, point, False, "lora") == -signal.SIGKILL
    assert not (tmp_path / "adapter").exists()
    assert run(processes, tmp_path, None, True, "lora") == 0
    assert_same_run(tmp_path, uninterrupted("lora"), "lora")


def test_a_killed_full_fine_tuning_reaches_the_same_numbers(processes: Any, uninterrupted: Any, tmp_path: Path) -> None:
    assert run(processes, tmp_path, "second epoch", False, "full") == -signal.SIGKILL
    assert run(processes, tmp_path, None, True, "full") == 0
    assert_same_run(tmp_path, uninterrupted("full"), "full")


@pytest.mark.parametrize("point", ["mid-accumulation", "second epoch"])
@pytest.mark.parametrize("data", ["stored", "stored and packed", "streamed", "streamed and packed"])
def test_however_the_data_is_kept_a_killed_run_reaches_the_same_numbers(
    data: str, point: str, processes: Any, uninterrupted: Any, tmp_path: Path
) -> None:
    assert run(processes, tmp_path, point, False, "lora", data=data) == -signal.SIGKILL
    assert run(processes, tmp_path, None, True, "lora", data=data) == 0
    assert_same_run(tmp_path, uninterrupted("lora", data=data), "lora")


def test_a_killed_run_chooses_and_stops_as_it_would_have(processes: Any, uninterrupted: Any, tmp_path: Path) -> None:
    assert run(processes, tmp_path, "second epoch", False, "lora", data="choosing") == -signal.SIGKILL
    assert run(processes, tmp_path, None, True, "lora", data="choosing") == 0
    assert_same_run(tmp_path, uninterrupted("lora", data="choosing"), "lora")
    told = json.loads((tmp_path / "result.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if line["kind"] == "step"}
    assert (told["best"]["step"], told["stopped_early_at"]) == (5, 11), "kept before the checkpoint at step 6"
    assert rates[8] == 0.5 * rates[7], "one bad evaluation before that checkpoint, and one after"


def test_stored_items_train_to_the_numbers_of_those_in_memory(uninterrupted: Any) -> None:
    assert_same_run(uninterrupted("lora"), uninterrupted("lora", data="stored"), "lora")


def test_a_log_entry_that_spans_the_checkpoint_is_the_same(processes: Any, uninterrupted: Any, tmp_path: Path) -> None:
    assert run(processes, tmp_path, "second epoch", False, "lora", log_every=4) == -signal.SIGKILL
    assert run(processes, tmp_path, None, True, "lora", log_every=4) == 0
    assert_same_run(tmp_path, uninterrupted("lora", 4), "lora")


def test_a_run_killed_twice_reaches_the_same_numbers(processes: Any, uninterrupted: Any, tmp_path: Path) -> None:
    assert run(processes, tmp_path, "mid-accumulation", False, "lora") == -signal.SIGKILL
    assert run(processes, tmp_path, "checkpoint write", True, "lora") == -signal.SIGKILL
    assert run(processes, tmp_path, None, True, "lora") == 0
    assert_same_run(tmp_path, uninterrupted("lora"), "lora")


def test_a_half_written_checkpoint_is_never_resumed_from(processes: Any, tmp_path: Path) -> None:
    assert run(processes, tmp_path, "checkpoint write", False, "lora") == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-3"]
    assert list((tmp_path / "checkpoints" / ".partial").glob("checkpoint-6"))
    assert run(processes, tmp_path, None, True, "lora") == 0
    assert not (tmp_path / "checkpoints" / ".partial").exists()


def test_the_kills_interrupt_real_work(processes: Any, uninterrupted: Any) -> None:
    lines = [json.loads(line) for line in (uninterrupted("lora") / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 13))
    assert [line["step"] for line in lines if line["kind"] == "evaluated"] == [4, 8, 12]
