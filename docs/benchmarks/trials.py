"""Trials: one run of each of several recipes, in a process of its own, whose peak memory is then its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import peak_bytes

HERE = Path(__file__).resolve().parent
Told = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A row of a page: what it is called, the plugins of the recipe, and at which learning rate.

    `needs` is the plugin without which there is no such row, `library` the package.
    """

    title: str
    use: Mapping[str, Mapping[str, Any]]
    rate: float = 1e-4
    needs: str = "sft"
    library: str = "torch"


@dataclass(frozen=True)
class Asked:
    """What a process is asked for."""

    trial: str
    model: str
    data: str
    steps: int
    folder: Path


def run_all(key: str, trials: Mapping[str, Trial], data: Path, model: str, steps: int) -> Iterator[dict[str, Told]]:
    """Run each trial that can be run, by `KEY_contenders.py`. Gives all results so far after each."""
    found: dict[str, Told] = {}
    for name in offered(trials):
        print(f"{key}, {name}: ", end="", flush=True)
        command = [sys.executable, str(HERE / f"{key}_contenders.py"), name]
        command += ["--data", str(data), "--model", model, "--steps", str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{found[name]['seconds']:.0f} s", flush=True)
        yield found


def offered(trials: Mapping[str, Trial]) -> list[str]:
    """The trials whose plugins and libraries are installed."""
    from importlib.util import find_spec

    from tunekit.catalog import Catalog

    names = Catalog.discover().names
    return [name for name, trial in trials.items() if trial.needs in names and find_spec(trial.library)]


def main(trials: Mapping[str, Trial], run: Callable[[Trial, Asked], Told]) -> None:
    """Run one trial as the command line says, and tell what came out, seconds and peak memory in one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trial", choices=trials)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["TUNEKIT_CACHE"] = f"{name}/cache"
        asked = Asked(options.trial, options.model, options.data, options.steps, Path(name))
        start = time.perf_counter()
        told = run(trials[options.trial], asked)
        seconds = time.perf_counter() - start
    print(json.dumps({**told, "seconds": seconds, "peak_bytes": peak_bytes()}))
