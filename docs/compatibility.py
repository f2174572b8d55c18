"""What goes together: every combination planned, some of them run, and a page that claims no more.

Usage: python docs/compatibility.py --choose        plan all, and choose the set that the suite runs
       python docs/compatibility.py --run pairs     run a set in which every two that go together do so once
       python docs/compatibility.py --run all --shard 1/8     run an eighth of all that the planner accepts
       python docs/compatibility.py --run chosen    run the set that the suite runs
       python docs/compatibility.py                 plan all, and write the page again
`--missing` leaves out what has shown all that is asked. Results are kept in docs/compatibility.json, of other runs
and shards too, which may go on at the same time.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence, Set
from pathlib import Path
from zlib import crc32

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from combination_checks import FAILED, QUESTIONS, Trial
from combination_helpers import Cell, Materials, cells, covering, read_chosen, refusal, write_chosen
from combination_page import page
from combination_results import PAGE, Results


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--choose", action="store_true", help="choose the set that the suite runs")
    parser.add_argument("--run", choices=["pairs", "all", "chosen"], help="which of those that are accepted")
    parser.add_argument("--shard", default="1/1", help="every n-th of these, from the k-th: k/n")
    parser.add_argument("--missing", action="store_true", help="of these only what has not shown all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        materials = Materials(Path(name))
        results = Results.read()
        accepted = results.plan({cell: refusal(cell, materials) for cell in cells()})
        print(f"{results.planned:,} planned, {results.accepted:,} accepted", flush=True)
        if options.choose:
            write_chosen(covering(accepted, 1))
        shown = {cell for cell in accepted if options.missing and results.shown(cell)}
        waiting = shard(to_run(accepted, options.run, shown), options.shard)
        print(f"{len(waiting):,} to run", flush=True)
        save(results)
        for cell in waiting:
            results.add(cell, answers(cell, materials))
            save(results)
            gc.freeze()  # what is imported by now: each run walks over all that is not


def to_run(accepted: Sequence[Cell], told: str | None, shown: Set[Cell]) -> Sequence[Cell]:
    """All that is accepted, one set in which every two are, or that of the suite; without what is shown already."""
    if told == "pairs":
        return covering(accepted, 2, shown)
    chosen = {None: [], "all": accepted, "chosen": read_chosen()}[told]
    return [cell for cell in chosen if cell not in shown]


def shard(chosen: Sequence[Cell], told: str) -> Sequence[Cell]:
    """Every n-th of them, from the k-th, in an order in which all kinds come early."""
    number, count = map(int, told.split("/"))
    return sorted(chosen, key=lambda cell: crc32(str(cell).encode()))[number - 1 :: count]


def answers(cell: Cell, materials: Materials) -> dict[str, str]:
    """What a cell has shown, question by question; what one that does not train would show else is not asked."""
    start, found = time.perf_counter(), dict[str, str]()
    folder = Path(tempfile.mkdtemp(dir=materials.folder))
    trial = Trial(cell, materials, folder)
    for question in QUESTIONS:
        try:
            found[question] = getattr(trial, question)()
        except Exception as error:  # a cell that fails is a result
            found[question] = f"{FAILED}: {type(error).__name__}: {error}".splitlines()[0][:300]
            if question == QUESTIONS[0]:
                break
    shutil.rmtree(folder)
    told = ", ".join(f"{question}: {answer}" for question, answer in found.items())
    print(f"{cell}: {told} ({time.perf_counter() - start:.0f} s)", flush=True)
    return found


def save(results: Results) -> None:
    """Keep the results, and write the page."""
    results.write()
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
