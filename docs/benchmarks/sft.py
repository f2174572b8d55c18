"""The section on supervised fine-tuning: tunekit, a plain Trainer and TRL on the same rows, taking turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent
NAMES = {"tunekit": "tunekit", "plain": "transformers.Trainer", "trl": "TRL SFTTrainer"}
WARM_UP = 2
"""Steps at the start of each process that are not timed: allocators and kernels settle in them."""
GOALS = {
    "fp32": {"plain": 1.8, "trl": 2.5},
    "bf16": {"plain": 2.2, "trl": 2.5},
    "default": {"plain": 4.0, "trl": None},
}
HEAD = """## Supervised fine-tuning

Supervised fine-tuning of SmolLM2-135M-Instruct with LoRA of rank 8 on all linear layers, on rows of
`alpaca_en_demo.json`, 4 rows per micro-batch, cut at 512 tokens. Every contender trains on the same token ids, the
same labels and the same initial adapter, in the same order. Rounds: {rounds}; steps: {steps}, of which the first
{warm_up} are not timed; medians over the rounds.

![Real tokens per second and peak memory](pictures/sft.png)
"""
FOOT = """
Real tokens are those of the data; padding does not count. `fp32` and `bf16` give everybody the same dtype; `default`
is what each does when nothing is said: fp32 for the plain Trainer, bf16 with activation checkpointing for TRL, bf16 for
tunekit on this processor. Peak memory is that of the whole process, libraries included. The last column is the largest
difference of any step's loss to tunekit's. The goal is the factor this project set itself.
"""
Results = dict[str, dict[str, list[dict[str, Any]]]]


def measure(data: str, rounds: int, steps: int) -> Iterator[dict[str, Any]]:
    """Run every contender once per round, so that a slow minute of the machine meets all of them.

    Gives all results so far after each round.
    """
    runs: Results = {dtype: {name: [] for name in NAMES} for dtype in GOALS}
    for number in range(rounds):
        for dtype in GOALS:
            for name in NAMES:
                print(f"round {number + 1}, {dtype}, {name}", flush=True)
                runs[dtype][name].append(one(name, dtype, data, steps))
        yield {"runs": runs, "steps": steps}


def one(name: str, dtype: str, data: str, steps: int) -> dict[str, Any]:
    """Run one contender in its own process."""
    command = [sys.executable, str(HERE / "sft_contenders.py"), name, dtype, "--data", data, "--steps", str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def speed(runs: list[dict[str, Any]]) -> float:
    """Real tokens per second: the median over rounds."""
    return statistics.median(
        sum(step["tokens"] for step in run["steps"][WARM_UP:]) / sum(step["seconds"] for step in run["steps"][WARM_UP:])
        for run in runs
    )


def memory(runs: list[dict[str, Any]]) -> float:
    """Peak memory in bytes: the median over rounds."""
    return statistics.median(run["peak_bytes"] for run in runs)


def difference(runs: dict[str, list[dict[str, Any]]], name: str) -> float:
    """The largest difference to tunekit's loss in any step."""
    pairs = zip(runs["tunekit"][0]["steps"], runs[name][0]["steps"], strict=True)
    return max(abs(ours["loss"] - theirs["loss"]) for ours, theirs in pairs)


def page(results: dict[str, Any]) -> str:
    """The section of the page."""
    runs: Results = results["runs"]
    lines = [
        HEAD.format(rounds=len(runs["fp32"]["tunekit"]), steps=results["steps"], warm_up=WARM_UP),
        "| dtype | contender | real tokens/s | tunekit is faster by | goal | peak memory | our share | loss differs |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for dtype, contenders in runs.items():
        lines += [row(dtype, name, contenders) for name in NAMES]
    return "\n".join([*lines, FOOT])


def row(dtype: str, name: str, contenders: dict[str, list[dict[str, Any]]]) -> str:
    """One row of the table."""
    rate, peak = speed(contenders[name]), memory(contenders[name])
    if name == "tunekit":
        cells = ["", "", f"{peak / 2**30:.2f} GiB", "", ""]
    else:
        goal = GOALS[dtype][name]
        cells = [
            f"{speed(contenders['tunekit']) / rate:.2f}x",
            f"{goal}x" if goal else "",
            f"{peak / 2**30:.2f} GiB",
            f"{memory(contenders['tunekit']) / peak:.0%}",
            f"{difference(contenders, name):.1e}",
        ]
    return f"| {dtype} | {NAMES[name]} | {rate:,.0f} | " + " | ".join(cells) + " |"


def draw(runs: Results) -> None:
    """Bars of speed and memory, grouped by dtype."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {"tunekit": "#0b7a75", "plain": "#b8b8b8", "trl": "#7d8597"}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    charts = (("real tokens per second", speed, 1.0, "{:.0f}"), ("peak memory, GiB", memory, 2.0**30, "{:.1f}"))
    for axes, (title, value, unit, style) in zip(figure.subplots(1, 2), charts, strict=True):
        for offset, name in enumerate(NAMES):
            places = [index + 0.27 * (offset - 1) for index in range(len(runs))]
            heights = [value(contenders[name]) / unit for contenders in runs.values()]
            bars = axes.bar(places, heights, 0.25, color=colours[name], label=NAMES[name])
            axes.bar_label(bars, [style.format(height) for height in heights], fontsize=8, padding=2)
        axes.set_xticks(range(len(runs)), list(runs))
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(DOCS / "pictures" / "sft.png", dpi=150)
