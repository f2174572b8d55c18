"""The benchmark: tunekit and its peers on the same work, interleaved, in one run.

Usage: python docs/benchmarks/run.py [--only sft|data] [--rounds 3] [--steps 12] [--rows 100000] [--data FILE]. Writes
docs/performance.md, its pictures and docs/benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import data
import sft

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent
SECTIONS = {"sft": sft, "data": data}
HEAD = """# Performance

Every contender does the same work in a process of its own, and the contenders take turns, so that a slow minute of the
machine meets all of them. Measured by `nox -s bench` on {machine}, with {versions}.
"""
LIBRARIES = ("tunekit-core", "torch", "transformers", "peft", "trl", "datasets")


def main() -> None:
    """Run all contenders, round by round, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=SECTIONS, help="measure this section, and keep what is known of the others")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of each training")
    parser.add_argument("--rows", type=int, default=100_000, help="rows that are prepared")
    parser.add_argument("--data", help="alpaca_en_demo.json; without it the file is taken from LLaMA-Factory's sdist")
    parser.add_argument("--draw-only", action="store_true", help="draw again from results.json")
    options = parser.parse_args()
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if options.draw_only:
        write_page(results)
    else:
        for name, found in measure(options, options.data or fetch_data()):
            results.update({name: found, "machine": processor(), "versions": versions()})
            path.write_text(json.dumps(results, indent=1) + "\n")
            write_page(results)
    print((DOCS / "performance.md").read_text())


def measure(options: argparse.Namespace, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure each section; all its results so far come after each round."""
    if options.only in (None, "data"):
        yield from (("data", found) for found in data.measure(source, options.rounds, options.rows))
    if options.only in (None, "sft"):
        yield from (("sft", found) for found in sft.measure(source, options.rounds, options.steps))


def write_page(results: dict[str, Any]) -> None:
    """Draw the pictures and write the page."""
    (DOCS / "pictures").mkdir(exist_ok=True)
    libraries = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [HEAD.format(machine=results["machine"], versions=libraries)]
    for name, section in SECTIONS.items():
        if name in results:
            section.draw(results[name]["runs"])
            parts.append(section.page(results[name]))
    (DOCS / "performance.md").write_text("\n".join(parts))


def versions() -> dict[str, str]:
    """Which libraries took part."""
    return {name: metadata.version(name) for name in LIBRARIES}


def fetch_data() -> str:
    """Take alpaca_en_demo.json (Apache-2.0) out of LLaMA-Factory's source distribution."""
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run([*command, "-d", str(folder), "llamafactory==0.9.5"], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        member = next(name for name in tar.getnames() if name.endswith("data/alpaca_en_demo.json"))
        extracted = tar.extractfile(member)
        assert extracted is not None, "a file, not a folder"
        (folder / "alpaca_en_demo.json").write_bytes(extracted.read())
    return str(folder / "alpaca_en_demo.json")


def processor() -> str:
    """The machine in words."""
    from tunekit.machine import probe

    machine = probe()
    return f"{machine.cores} cores of {machine.processor} ({platform.system()}, {machine.memory_bytes / 2**30:.0f} GiB)"


if __name__ == "__main__":
    main()
