"""Train every stage on the real model, and show that it learns: curves, figures before and after, exact recipes.

Usage: python docs/learning/run.py [--only sft dpo ...] [--data FOLDER] [--output FOLDER] [--draw-only]. Writes
docs/learning.md, its pictures, and docs/learning/results.json after each stage. A stage whose finished run is in the
output folder is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from curves import draw, interval, points
from stages import LESSONS, Lesson

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent
RESULTS = HERE / "results.json"
HEAD = """# Does it learn?

Each stage on SmolLM2-135M-Instruct and real data, in minutes on a CPU: the recipe as it was run, what was measured on
rows that were held out, and the curves. `nox -s learn` does all of it again; the last time was on {machine}. The rows
are LLaMA-Factory's demonstration sets. Held-out points begin before the first step. Intervals are Wilson's, at 95%.
Faint lines are single steps, whose few rows make them noisy.
"""


def main() -> None:
    """Train, keep, draw and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=LESSONS, default=list(LESSONS), help="stages; others stay")
    parser.add_argument("--data", help="folder of the demo data; without it, it is taken from LLaMA-Factory's sdist")
    parser.add_argument("--output", help="folder for the runs; without it, one that is thrown away")
    parser.add_argument("--draw-only", action="store_true", help="draw again from results.json")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.draw_only:
        folder = Path(options.data) if options.data else fetched()
        with tempfile.TemporaryDirectory() as thrown_away:
            for name in options.only:
                print(f"{name} ...", flush=True)
                kept = learn(name, folder.resolve(), Path(options.output or thrown_away))
                results.setdefault("stages", {})[name] = kept
                results["machine"] = processor()
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                write(results)
    write(results)
    print((DOCS / "learning.md").read_text())


def learn(name: str, data: Path, output: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run a stage's recipe, and what it needs to be compared with; returns what is kept of both."""
    lesson = LESSONS[name]
    run = finished(name, data / lesson.data, output / name, overrides)
    before = lesson.start
    if before is None:
        still = (f"stages.{name}.steps=1", f"stages.{name}.schedule.warmup_steps=1")
        before = evaluations(finished(name, data / lesson.data, output / f"{name}-before", (*overrides, *still)))[-1]
    facts = run.record.finished_stages()[0]["facts"]
    first = {"kind": "evaluated", **before, "step": 0}
    lines = [tidy(line, lesson) for line in (first, *steps(run), *evaluations(run))]
    counts = {"trained_on": facts.get("prompts", facts["items_trained_on"]), "held_out": facts["items_held_out"]}
    return {**counts, "tokens": facts["tokens"], "lines": lines}


def finished(name: str, data: Path, folder: Path, overrides: tuple[str, ...] = ()) -> Any:
    """The run of a recipe, done now or before."""
    import tunekit as tk

    if (folder / "run.json").exists():
        return tk.open_run(folder)
    pipeline = tk.Pipeline.from_file(HERE / f"{name}.yaml", (f"data.path={data}", *overrides))
    return pipeline.run(folder, watchers=[progress])


def progress(event: Any) -> None:
    """Print every fifth step, and each evaluation."""
    if event.kind == "evaluated" or (event.kind == "step" and event.step % 5 == 0):
        told = {name.removeprefix("eval_"): value for name, value in event.metrics.items()}
        shown = " ".join(f"{name} {told[name]:.3f}" for name in ("loss", "margin", "accuracy") if name in told)
        print(f"  {event.kind} {event.step} of {event.total_steps}: {shown}", flush=True)


def steps(run: Any) -> list[dict[str, Any]]:
    """What was told of each step."""
    return [line for line in run.metrics if line["kind"] == "step"]


def evaluations(run: Any) -> list[dict[str, Any]]:
    """What was told of the held-out rows, under the names that the metrics have while training."""
    found = [line for line in run.metrics if line["kind"] == "evaluated"]
    return [{name.removeprefix("eval_"): value for name, value in line.items()} for line in found]


def tidy(line: dict[str, Any], lesson: Lesson) -> dict[str, Any]:
    """The metrics that are shown, to five digits; some of them follow from others."""
    if "loss" in line and "perplexity" not in line:
        line = {**line, "perplexity": math.exp(line["loss"])}
    if "reward_good" in line and "reward_bad" in line:
        line = {**line, "margin": line["reward_good"] - line["reward_bad"]}
    wanted = {name for panel in lesson.panels for name in panel.metrics} | {name for name, _ in lesson.table}
    shown = {name: float(f"{value:.5g}") for name, value in line.items() if name in wanted}
    return {"kind": line["kind"], "step": line["step"], **shown}


def write(results: dict[str, Any]) -> None:
    """Draw the pictures and write the page."""
    for name, lesson in LESSONS.items():
        if name in results["stages"]:
            draw(lesson, results["stages"][name], DOCS / "pictures" / f"learning-{name}.png")
    (DOCS / "learning.md").write_text(page(results))


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    parts = [HEAD.format(machine=results["machine"])]
    return "\n".join(parts + [section(name, results["stages"][name]) for name in LESSONS if name in results["stages"]])


def section(name: str, kept: dict[str, Any]) -> str:
    """One stage: what it shows, the curves, the figures, the recipe."""
    lesson = LESSONS[name]
    recipe = (HERE / f"{name}.yaml").read_text()
    lines = [f"## {lesson.title}", "", lesson.text, "", f"![{lesson.title}](pictures/learning-{name}.png)", ""]
    lines += [f"| {kept['held_out']} held-out items | before | after |", "|---|---:|---:|"]
    lines += [figures(kept, metric, told) for metric, told in lesson.table]
    lines += ["", remark(kept), "", f'```yaml title="{name}.yaml" requires="{lesson.data}"', recipe + "```", ""]
    return "\n".join(lines)


def figures(kept: dict[str, Any], metric: str, told: str) -> str:
    """A row of the table: a metric of the held-out rows before the first step and after the last."""
    found = [value for _, value in points(kept, "evaluated", metric)]
    before, after = f"{found[0]:.3f}", f"{found[-1]:.3f}"
    if metric == "accuracy":
        low, high = interval(found[-1], kept["held_out"])
        before, after = f"{found[0]:.0%}", f"{found[-1]:.0%} ({low:.0%} to {high:.0%})"
    return f"| {told} | {before} | {after} |"


def remark(kept: dict[str, Any]) -> str:
    """What it took."""
    steps = sum(line["kind"] == "step" for line in kept["lines"])
    return f"{steps} steps on {kept['trained_on']} items, {kept['tokens']:,.0f} tokens."


def fetched() -> Path:
    """The folder of the demo data, which the folder above knows to get."""
    sys.path.append(str(DOCS))
    from demo_data import fetch

    return fetch()


def processor() -> str:
    """The machine in words."""
    from tunekit.machine import probe

    machine = probe()
    return f"{machine.cores} cores of {machine.processor} ({platform.system()}, {machine.memory_bytes / 2**30:.0f} GiB)"


if __name__ == "__main__":
    main()
