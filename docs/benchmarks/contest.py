"""A contest: contenders that train on the same rows, taking turns; its table and its bars for the page."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PICTURES = HERE.parent / "pictures"
WARM_UP = 1
"""Steps at the start of each process that are not timed: allocators and kernels settle in them."""
OURS = "tunekit"
COLOURS = ("#0b7a75", "#b8b8b8", "#7d8597", "#a3b4c4", "#c9d3dc")
Run = dict[str, Any]
Runs = dict[str, dict[str, list[Run]]]


@dataclass(frozen=True)
class Contest:
    """One section of the page in which several contenders train.

    `names` says what each contender is called, ours first; `variants` which of them take part in what, usually a dtype;
    `goals` by what factor ours is to be faster than which of them. `head` is formatted with `rounds`, `steps` and
    `warm_up`. With `whole` the seconds of a whole run count, else real tokens per second after the first steps.
    `times` as many steps are made as the command line says.
    """

    key: str
    data: str
    names: Mapping[str, str]
    variants: Mapping[str, tuple[str, ...]]
    goals: Mapping[tuple[str, str], float]
    head: str
    foot: str
    whole: bool = False
    times: int = 1
    memory_goals: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def measure(self, folder: Path, options: argparse.Namespace) -> Iterator[Run]:
        """Run every contender once per round, so that a slow minute of the machine meets all of them.

        Gives all results so far after each round.
        """
        runs: Runs = {variant: {name: [] for name in names} for variant, names in self.variants.items()}
        for number in range(options.rounds):
            for variant, names in self.variants.items():
                for name in names:
                    print(f"round {number + 1}, {self.key}, {variant}, {name}: ", end="", flush=True)
                    run = self.one(name, variant, folder, options)
                    print(f"{sum(step['seconds'] for step in run['steps']):.0f} s", flush=True)
                    runs[variant][name].append(run)
            yield {"runs": runs, "steps": self.times * options.steps}

    def one(self, name: str, variant: str, folder: Path, options: argparse.Namespace) -> Run:
        """Run one contender in its own process, so that its peak memory is its own."""
        script, data = HERE / f"{self.key}_contenders.py", folder / self.data
        command = [
            sys.executable,
            str(script),
            name,
            variant,
            "--data",
            str(data),
            "--steps",
            str(self.times * options.steps),
        ]
        command += ["--model", options.model]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        result: Run = json.loads(done.stdout.splitlines()[-1])
        return result

    def page(self, results: Run) -> str:
        """The section of the page."""
        runs: Runs = results["runs"]
        rounds = len(next(iter(runs.values()))[OURS])
        measure = "whole run" if self.whole else "real tokens/s"
        compared = ("tunekit is faster by", "goal", "peak memory", "our share", "loss differs")
        lines = [
            self.head.format(rounds=rounds, steps=results["steps"], warm_up=WARM_UP),
            f"\n![{self.told[0]} and peak memory](pictures/{self.key}.png)\n",
            "| " + " | ".join(("dtype", "contender", measure, *compared)) + " |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
        for variant, contenders in runs.items():
            lines += [self._row(variant, name, contenders) for name in contenders]
        return "\n".join([*lines, self.foot])

    def _row(self, variant: str, name: str, contenders: Mapping[str, list[Run]]) -> str:
        """One row of the table."""
        peak, shown = memory(contenders[name]), self._shown(contenders[name])
        cells = ["", "", f"{peak / 2**30:.2f} GiB", "", ""]
        if name != OURS:
            goal, memory_goal = self.goals.get((variant, name)), self.memory_goals.get((variant, name))
            share = f"{memory(contenders[OURS]) / peak:.0%}"
            cells = [
                f"{self._factor(contenders, name):.2f}x",
                f"{goal:g}x" if goal else "",
                f"{peak / 2**30:.2f} GiB",
                f"{share} (goal {memory_goal:.0%})" if memory_goal else share,
                _difference(contenders[OURS], contenders[name]),
            ]
        return f"| {variant} | {self.names[name]} | {shown} | " + " | ".join(cells) + " |"

    def _factor(self, contenders: Mapping[str, list[Run]], name: str) -> float:
        """How many times as fast ours is."""
        ours, theirs = (self._value(contenders[each]) for each in (OURS, name))
        return theirs / ours if self.whole else ours / theirs

    @property
    def _value(self) -> Callable[[list[Run]], float]:
        return seconds if self.whole else speed

    def _shown(self, runs: list[Run]) -> str:
        return f"{seconds(runs):,.0f} s" if self.whole else f"{speed(runs):,.0f}"

    @property
    def told(self) -> tuple[str, str]:
        """What is measured, for a title, and how its numbers are written."""
        return ("Seconds of the whole run" if self.whole else "Real tokens per second"), "{:,.0f}"

    def draw(self, results: Run) -> None:
        """Bars of speed and memory, grouped by variant."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        runs: Runs = results["runs"]
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        speeds, peaks = figure.subplots(1, 2)
        self._bars(speeds, runs, self._value, *self.told)
        self._bars(peaks, runs, lambda of: memory(of) / 2**30, "Peak memory, GiB", "{:.1f}")
        handles, labels = speeds.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
        figure.savefig(PICTURES / f"{self.key}.png", dpi=150)

    def _bars(self, axes: Any, runs: Runs, value: Callable[[list[Run]], float], title: str, style: str) -> None:
        shown = [name for name in self.names if any(name in found for found in runs.values())]
        width = 0.86 / len(shown)
        for name, colour in zip(shown, COLOURS, strict=False):
            there = [(place, list(found), found[name]) for place, found in enumerate(runs.values()) if name in found]
            places = [place + width * (names.index(name) - (len(names) - 1) / 2) for place, names, _ in there]
            heights = [value(each) for _, _, each in there]
            bars = axes.bar(places, heights, 0.92 * width, color=colour, label=self.names[name])
            axes.bar_label(bars, [style.format(height) for height in heights], fontsize=7.5, padding=2)
        axes.set_xticks(range(len(runs)), list(runs))
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)


def speed(runs: list[Run]) -> float:
    """Real tokens per second after the first steps: the median over rounds."""
    return statistics.median(
        sum(step["tokens"] for step in run["steps"][WARM_UP:]) / sum(step["seconds"] for step in run["steps"][WARM_UP:])
        for run in runs
    )


def seconds(runs: list[Run]) -> float:
    """Seconds of the whole run, from opening the model to the saved result: the median over rounds."""
    return statistics.median(run["seconds"] for run in runs)


def memory(runs: list[Run]) -> float:
    """Peak memory in bytes: the median over rounds."""
    return statistics.median(run["peak_bytes"] for run in runs)


def _difference(ours: list[Run], theirs: list[Run]) -> str:
    """The largest difference to our loss in any step, or nothing where their steps hold other rows."""
    if not theirs[0].get("same_rows", True):
        return "other rows"
    pairs = zip(ours[0]["steps"], theirs[0]["steps"], strict=True)
    return f"{max(abs(one['loss'] - other['loss']) for one, other in pairs):.1e}"
