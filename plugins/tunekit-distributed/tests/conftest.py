"""A script started in two processes, once for each way, and what it found."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tunekit.testing.fixtures import shared  # noqa: F401
from tunekit_distributed.crew import _free_port

CHILD = Path(__file__).with_name("distributed_child.py")


@pytest.fixture(scope="session")
def ran(shared):  # noqa: F811
    """What two processes have found that train in a way, and where: all they do is done in one start."""

    def of(way):
        if way == "zero3":
            pytest.importorskip("deepspeed")
        folder, partial = shared / way, shared / f"{way}-partial"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                in_processes(CHILD, way, partial, 2)
                partial.rename(folder)
        return json.loads((folder / "found.json").read_text()), folder

    return of


@pytest.fixture(scope="session")
def child():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("distributed_child", CHILD)
    module = importlib.util.module_from_spec(spec)
    sys.modules["distributed_child"] = module
    spec.loader.exec_module(module)
    return module


def in_processes(script, way, folder, count):
    """Run a script in so many processes."""
    port = str(_free_port())
    crew = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        quiet = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with (folder / f"output-{rank}.txt").open("wb") as told:
            crew.append(
                subprocess.Popen(
                    [sys.executable, script, way, folder],
                    env={**os.environ, **quiet, **place},
                    stdout=told,
                    stderr=subprocess.STDOUT,
                )
            )
    codes = [each.wait(timeout=900) for each in crew]
    assert codes == [0] * count, "\n".join((folder / f"output-{rank}.txt").read_text() for rank in range(count))
