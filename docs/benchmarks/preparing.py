"""The section on preparing data: from a file of rows to token ids and a loss on the answers."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent
NAMES = {
    "tunekit": "tunekit",
    "plain": "datasets.map",
    "plain, 2 processes": "datasets.map, 2 processes",
    "trl": "TRL SFTTrainer",
    "trl, 2 processes": "TRL SFTTrainer, 2 processes",
}
GOAL = 2.0
HEAD = """## Preparing data

The rows of `alpaca_en_demo.json` again and again, each with a number of its own, {rows:,} in all: rendered by
SmolLM2's chat template, tokenised, with a loss on the answers alone. tunekit reads the file, checks and accounts for
every row, and stores the tokens; for the others the clock starts when the rows are in a data set in memory. Rounds:
{rounds}; medians.

![Rows per second](pictures/data.png)

| contender | rows/s | tunekit is faster by | goal | tokens | of them with a loss |
|---|---:|---:|---:|---:|---:|"""
FOOT = """
From its cache, tunekit has the same tokens again after {cached:.2f} s. The token ids are the same for all; TRL also
trains the newline that the template writes behind the last end token.
"""
Runs = dict[str, list[dict[str, float]]]


def measure(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run every contender once per round; gives all results so far after each round."""
    runs: Runs = {name: [] for name in NAMES}
    for number in range(options.rounds):
        for name in NAMES:
            print(f"round {number + 1}, data, {name}: ", end="", flush=True)
            runs[name].append(one(name, str(folder / "alpaca_en_demo.json"), options.rows))
            print(f"{runs[name][-1]['seconds']:.0f} s", flush=True)
        yield {"runs": runs, "rows": options.rows}


def one(name: str, source: str, rows: int) -> dict[str, float]:
    """Run one contender in its own process."""
    command = [sys.executable, str(HERE / "preparing_contenders.py"), name, "--data", source, "--rows", str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def speed(runs: list[dict[str, float]]) -> float:
    """Rows per second: the median over rounds."""
    return statistics.median(run["rows"] / run["seconds"] for run in runs)


def page(results: dict[str, Any]) -> str:
    """The section of the page."""
    runs: Runs = results["runs"]
    lines = [HEAD.format(rows=results["rows"], rounds=len(runs["tunekit"]))]
    for name, told in NAMES.items():
        factor = "" if name == "tunekit" else f"{speed(runs['tunekit']) / speed(runs[name]):.2f}x"
        goal = f"{GOAL}x" if name in ("plain", "trl") else ""
        counts = f"{runs[name][0]['tokens']:,.0f} | {runs[name][0]['supervised']:,.0f}"
        lines.append(f"| {told} | {speed(runs[name]):,.0f} | {factor} | {goal} | {counts} |")
    cached = statistics.median(run["cached_seconds"] for run in runs["tunekit"])
    return "\n".join([*lines, FOOT.format(cached=cached)])


def draw(results: dict[str, Any]) -> None:
    """Bars of speed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes, runs = figure.subplots(), results["runs"]
    names = list(NAMES)[::-1]
    colours = ["#0b7a75" if name == "tunekit" else "#7d8597" if name.startswith("trl") else "#b8b8b8" for name in names]
    bars = axes.barh([NAMES[name] for name in names], [speed(runs[name]) for name in names], 0.7, color=colours)
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=3)
    axes.set_title("rows per second", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    figure.savefig(DOCS / "pictures" / "data.png", dpi=150)
