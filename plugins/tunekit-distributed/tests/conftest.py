"""A script started in several processes, and what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tunekit_distributed.crew import _free_port


@pytest.fixture(scope="session")
def trained():
    return in_processes


def in_processes(script, way, folder, count):
    """What a script has found in so many processes, and where."""
    port = str(_free_port())
    crew = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)} if count > 1 else {}
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
    return json.loads((folder / "found.json").read_text()), folder
