"""What a process of its own does for `test_tracking.py`: `python tracked_child.py FOLDER`; it prints what arrived.

Two stages of one run are told to Weights & Biases, offline, and to MLflow, in files. Then a tracker fails.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tunekit as tk
from tunekit.errors import TunekitError
from tunekit.testing import save_tiny_model

ROWS = [{"instruction": f"What is {number}?", "output": f"It is {number}."} for number in range(6)]
STAGE: dict[str, Any] = {"steps": 2, "batch": {"rows": 2}, "checkpoint": {"every": 0}}


def stored(log: bytes) -> Iterator[bytes]:
    """The records of a log as LevelDB writes them: blocks of 32 KiB, and a record in one part or in several."""
    at, whole = 7, b""  # behind the name and version of the file
    while at + 7 <= len(log):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", log, at + 4)
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield whole
            whole = b""


def wandb_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Runs by their names: the losses of their steps, and the exit code, read from the files that wait to be sent."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in sorted(folder.rglob("*.wandb")):
        losses, name, code = [], "", None
        for data in stored(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
            elif kind == "exit":
                code = record.exit.exit_code
            elif kind == "history":
                told = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                if "train/loss" in told:
                    losses.append((int(told["train/global_step"]), float(told["train/loss"])))
        found[name] = {"losses": losses, "ended": code}
    return found


def mlflow_runs() -> dict[str, dict[str, Any]]:
    """The same of MLflow."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    found = {}
    for run in client.search_runs(["0"]):
        history = client.get_metric_history(run.info.run_id, "loss")
        losses = sorted((each.step, each.value) for each in history)
        found[run.info.run_name] = {"losses": losses, "ended": run.info.status}
    return found


def main(folder: Path) -> None:
    os.chdir(folder)
    os.environ.update(
        WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(folder), MLFLOW_ALLOW_FILE_STORE="true",
        MLFLOW_TRACKING_URI=(folder / "mlruns").as_uri(),
    )  # fmt: skip
    save_tiny_model("tiny")
    stage = {"sft": {**STAGE, "log": {"trackers": ["wandb", "mlflow"]}}}
    run = tk.Pipeline("tiny", ROWS, {"lora": {"rank": 2}}, [stage, stage]).run("demo")
    losses = [[line["loss"] for line in run.metrics if (line["index"], line["kind"]) == (at, "step")] for at in (0, 1)]
    told = {"losses": losses, "wandb": wandb_runs(folder), "mlflow": mlflow_runs()}
    os.environ["MLFLOW_TRACKING_URI"] = "nowhere://here"
    try:
        tk.Pipeline("tiny", ROWS, {"lora": {"rank": 2}}, [stage]).run("failing")
    except TunekitError as error:
        told["failed"] = f"{type(error).__name__}: {error}"
    told["failing"] = wandb_runs(folder).get("failing-stage-1-sft")
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
