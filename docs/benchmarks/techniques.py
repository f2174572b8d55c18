"""The page that compares techniques: memory, speed and held-out perplexity, on the same tokens."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contest import COLOURS, PICTURES, WARM_UP, speed
from techniques_contenders import BEGINNINGS, LIMIT, RANK, ROWS, TRIALS
from trials import run_all

TIMES = 2
"""Steps for each that the command line asks for."""
HEAD = """# Techniques side by side

The same rows in the same order, {tokens:,.0f} tokens for each: SmolLM2-135M-Instruct on `alpaca_en_demo.json`,
{steps} steps of {rows} rows, cut at {limit} tokens, products in bf16. Adapters have rank {rank} on all linear layers.
This is the table of *LlamaFactory* (arXiv 2403.13372) on the scale of a laptop. `nox -s bench -- --only techniques`
measures it anew; the last time was on {machine}, with {versions}.

![Peak memory, speed and held-out perplexity](pictures/techniques.png)

| technique | trains | learning rate | peak memory | real tokens/s | whole run | perplexity |
|---|---:|---:|---:|---:|---:|---:|
"""
FOOT = """
Peak memory is that of the whole process, in which Python and its libraries take about half a gigabyte, the model
loads, is evaluated, and is saved. Real tokens are those of the data, after the first step, in which allocators settle
and GaLore chooses its subspace; the whole run, from opening the model to the saved result, has everything in it.
Perplexity is that of {held_out} held-out rows. Each technique has a learning rate that suits it, and there are few
steps: read how close they are, not who is first. GPTQ first quantises the model by 32 of the rows, in a process of
its own, which is in the seconds of the whole run and not in its memory. A model so small has little to gain from few
bits: its embedding, which stays whole, is a fifth of it.
"""


def measure(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run every technique once."""
    steps = TIMES * options.steps
    for runs in run_all("techniques", TRIALS, folder / "alpaca_en_demo.json", options.model, steps):
        yield {"runs": runs, "steps": steps}


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    from techniques_contenders import HELD_OUT

    runs = results["runs"]
    tokens = {sum(step["tokens"] for step in run["steps"]) for run in runs.values()}
    assert len(tokens) == 1, "all train on the same tokens"
    filled = {"tokens": tokens.pop(), "steps": results["steps"], "rows": ROWS, "limit": LIMIT, "rank": RANK}
    head = HEAD.format(**filled, machine=results["machine"], versions=results["versions"])
    rows = [row(name, run) for name, run in runs.items()]
    before = {title: runs.get(name, {}).get("before") for name, title in BEGINNINGS.items()}
    first = [f"| {title} | | | | | | {found:.3f} |" for title, found in before.items() if found is not None]
    return head + "\n".join([*first, *rows]) + "\n" + FOOT.format(held_out=HELD_OUT)


def row(name: str, run: dict[str, Any]) -> str:
    """One row of the table."""
    trial = TRIALS[name]
    cells = (
        trial.title,
        f"{run['trainable'] / 1e6:,.1f} M",
        f"{trial.rate:g}",
        f"{run['peak_bytes'] / 2**30:.2f} GiB",
        f"{speed([run]):,.0f}",
        f"{run['seconds']:,.0f} s",
        f"{run['perplexity']:.3f}",
    )
    return "| " + " | ".join(cells) + " |"


def draw(results: dict[str, Any]) -> None:
    """Two panels of bars and one of dots, one line for each technique."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = results["runs"]
    figure = Figure(figsize=(9, 0.34 * len(runs) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    memory, rate, quality = figure.subplots(1, 3, sharey=True)
    _bars(memory, "Peak memory, GiB", [run["peak_bytes"] / 2**30 for run in runs.values()], "{:.2f}")
    _bars(rate, "Real tokens per second", [speed([run]) for run in runs.values()], "{:,.0f}")
    _dots(quality, [run["perplexity"] for run in runs.values()], runs.get("lora", {}).get("before"))
    memory.set_yticks(range(len(runs)), [TRIALS[name].title.partition(",")[0] for name in runs], fontsize=8.5)
    memory.invert_yaxis()
    for axes in (memory, rate, quality):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)
        axes.margins(x=0.18)
    figure.savefig(PICTURES / "techniques.png", dpi=150)


def _bars(axes: Any, title: str, values: list[float], style: str) -> None:
    bars = axes.barh(range(len(values)), values, 0.7, color=COLOURS[0])
    axes.bar_label(bars, [style.format(value) for value in values], fontsize=7.5, padding=2)
    axes.set_title(title, fontsize=10, loc="left")


def _dots(axes: Any, values: list[float], before: float | None) -> None:
    """Perplexities are close to each other, so their axis does not begin at 0, where bars would have to."""
    axes.scatter(values, range(len(values)), 36, color=COLOURS[0], zorder=2)
    for at, value in enumerate(values):
        left = before is not None and value < before
        place = {"xytext": (-7 if left else 7, 0), "ha": "right" if left else "left", "va": "center"}
        axes.annotate(f"{value:.2f}", (value, at), textcoords="offset points", fontsize=7.5, **place)
    axes.grid(axis="y", color="#e3e3e3", zorder=0)
    axes.set_title("Held-out perplexity", fontsize=10, loc="left")
    if before is not None:
        axes.axvline(before, color=COLOURS[2], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"before {before:.2f}", (before, 0), (5, 0), textcoords="offset points", va="center", fontsize=7.5
        )


assert WARM_UP == 1, "the page says so"
