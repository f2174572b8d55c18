"""The section on where the time of a step goes, and what share of this machine's matrix rate it reaches."""

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
PICTURES = HERE.parent / "pictures"
DTYPES = ("fp32", "bf16")
GOALS = {"fp32": 0.75, "bf16": 0.4}
GROUPS = ("products", "attention", "norms, activations", "head and loss", "optimiser", "copies, casts", "Python, other")
COLOURS = ("#0b7a75", "#e9b44c", "#7d8597", "#2a6fbb", "#9b2226", "#b8b8b8", "#e3e3e3")
HEAD = """## Where the time goes

The same fine-tuning step of tunekit as above, under `torch.profiler`. The matrix rate of the machine is the best of
several square products, measured in the same process just before. The step's share of it is the floating-point
operations that its mathematics needs (two for each weight of a linear layer and real token forwards, two backwards, the
same for the head at supervised positions, causal attention counted to the diagonal), divided by its time and that rate.
Rounds: {rounds}; medians.

![Where the time of a step goes](pictures/profile.png)

| dtype | matrix rate | the step's rate | share | goal |
|---|---:|---:|---:|---:|"""
FOOT = """
Products are those of the linear layers, low-rank parts included. Python and other is what no operator accounts for,
with the operators that fit nowhere else. The shares of time are those under the profiler, which slows small operators.
Were everything but the products and the head free, a step would be
{bounds}: so much is left at most.
"""


def measure(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Profile a run of each dtype once per round; gives all results so far after each round."""
    runs: dict[str, list[dict[str, Any]]] = {dtype: [] for dtype in DTYPES}
    for number in range(options.rounds):
        for dtype in DTYPES:
            print(f"round {number + 1}, profile, {dtype}: ", end="", flush=True)
            runs[dtype].append(one(dtype, folder / "alpaca_en_demo.json", options))
            print(f"{share(runs[dtype]):.0%} of the matrix rate", flush=True)
        yield {"runs": runs}


def one(dtype: str, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Profile in a process of its own."""
    command = [sys.executable, str(HERE / "breakdown_process.py"), dtype, "--data", str(data)]
    command += ["--steps", str(options.steps), "--model", options.model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def share(runs: list[dict[str, Any]]) -> float:
    """The step's share of the matrix rate: the median over rounds."""
    return statistics.median(run["step_rate"] / run["matrix_rate"] for run in runs)


def part(runs: list[dict[str, Any]], group: str) -> float:
    """A group's share of the time: the median over rounds."""
    return statistics.median(run["seconds"][group] / sum(run["seconds"].values()) for run in runs)


def page(results: dict[str, Any]) -> str:
    """The section of the page."""
    runs = results["runs"]
    lines = [HEAD.format(rounds=len(runs["fp32"]))]
    for dtype, found in runs.items():
        rates = [statistics.median(run[name] for run in found) / 1e9 for name in ("matrix_rate", "step_rate")]
        cells = [f"{rate:,.0f} GFLOP/s" for rate in rates]
        lines.append(f"| {dtype} | {cells[0]} | {cells[1]} | {share(found):.0%} | {GOALS[dtype]:.0%} |")
    lines += ["", "| part of a step | " + " | ".join(runs) + " |", "|---|" + "---:|" * len(runs)]
    for group in GROUPS:
        lines.append(f"| {group} | " + " | ".join(f"{part(found, group):.1%}" for found in runs.values()) + " |")
    bounds = " and ".join(f"{bound(found):.1f} times as fast in {dtype}" for dtype, found in runs.items())
    return "\n".join([*lines, FOOT.format(bounds=bounds)])


def bound(runs: list[dict[str, Any]]) -> float:
    """How much faster a step would be that did nothing but multiply by the model's weights."""
    return 1 / (part(runs, "products") + part(runs, "head and loss"))


def draw(results: dict[str, Any]) -> None:
    """One bar for each dtype, made of the parts of a step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = results["runs"]
    figure = Figure(figsize=(9, 2.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names, lefts = list(runs)[::-1], [0.0] * len(runs)
    for group, colour in zip(GROUPS, COLOURS, strict=True):
        widths = [100 * part(runs[name], group) for name in names]
        bars = axes.barh(names, widths, 0.6, left=lefts, color=colour, label=group)
        ink = "white" if colour in COLOURS[:1] + COLOURS[2:5] else "#333333"
        axes.bar_label(
            bars, [f"{width:.0f}" if width >= 3 else "" for width in widths], label_type="center", fontsize=8, color=ink
        )
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_title("share of a step's time, %", fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=9, left=False)
    figure.legend(loc="outside lower center", ncols=len(GROUPS), frameon=False, fontsize=8, columnspacing=1.2)
    figure.savefig(PICTURES / "profile.png", dpi=150)
