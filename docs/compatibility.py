"""What goes together: every combination planned, some of them run, and a page that claims no more.

Usage: python docs/compatibility.py --choose        plan all, and choose the set that the suite runs
       python docs/compatibility.py --run 1/8       run every eighth of all that the planner accepts, from the first
       python docs/compatibility.py --run pairs     run a set in which every two that go together do so once
       python docs/compatibility.py --run chosen    run the set that the suite runs
       python docs/compatibility.py                 write the page again
Results are kept in docs/compatibility.json, of other shards and earlier runs too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import combinations
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
TRAINS = "trains"
RESULTS, PAGE = DOCS / "compatibility.json", DOCS / "compatibility.md"
sys.path.insert(0, str(DOCS.parent / "tests"))

from combination_helpers import (  # noqa: E402 - the folder of the tests is none of the packages
    Cell,
    cells,
    check_that_it_trains,
    covering,
    read_chosen,
    refusal,
    write_chosen,
)

from tunekit.catalog import Catalog  # noqa: E402
from tunekit.testing import save_tiny_model  # noqa: E402

CATALOG = Catalog.discover()

HEAD = """# What goes together

Every quantiser with every adapter, optimiser and stage that is installed: {planned:,} combinations, of which the
planner accepts {accepted:,} and refuses {refused:,}, each with a reason and before anything is loaded. {ran:,} of those
it accepts were run on a tiny model: {trained:,} trained. Training means that the loss falls, that every parameter that
is to train moves and no other does, and that loss and gradient of the first step are those of the plain padded
computation.

**runs**: a combination with these two was run, and trained. **planned**: accepted, and none was run. **fails**: one was
run, and did not train. A number: refused with whatever else, for the reason below.
"""
KINDS = ("quantizer", "adapter", "optimizer", "stage")
TABLES = ((0, 1), (2, 1), (3, 1), (0, 2), (0, 3), (2, 3))
"""Which kinds stand across and down."""


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--choose", action="store_true", help="choose the set that the suite runs")
    parser.add_argument("--run", help="a shard such as 1/8, or chosen")
    parser.add_argument("--usual", dest="everything", action="store_false", help="leave out what few would combine")
    options = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"ran": {}}
    with tempfile.TemporaryDirectory() as name:
        model = str(save_tiny_model(Path(name) / "model"))
        refusals = {cell: reason(cell, model) for cell in cells(options.everything)}
        accepted = [cell for cell, why in refusals.items() if why is None]
        kept["pairs"] = list(pairs_of(refusals))
        kept["counts"] = {"planned": len(refusals), "accepted": len(accepted)}
        known = set(map(str, accepted))
        kept["ran"] = {name: found for name, found in kept["ran"].items() if name in known}
        if options.choose:
            write_chosen(covering(accepted, 1))
        if options.run:
            for cell in to_run(accepted, options.run):
                kept["ran"][str(cell)] = [astuple(cell), outcome(cell, model, Path(name))]
                save(kept)
    save(kept)
    print(PAGE.read_text())


def reason(cell: Cell, model: str) -> str | None:
    """Why it is refused, None where it is not."""
    refused = refusal(cell, model, CATALOG)
    return None if refused is None else "; ".join(dict.fromkeys(each.message for each in refused.problems))


def pairs_of(refusals: Mapping[Cell, str | None]) -> Iterator[list[Any]]:
    """Every two techniques, and the shortest reason why all combinations with both are refused; None where not all."""
    found: dict[Any, str | None] = {}
    for cell, why in refusals.items():
        for pair in cell.groups(2):
            if pair not in found:
                found[pair] = why
            elif why is None or found[pair] is None:
                found[pair] = None
            else:
                found[pair] = min(why, found[pair] or why, key=len)
    return ([*pair, why] for pair, why in sorted(found.items(), key=str))


def to_run(accepted: Sequence[Cell], told: str) -> Sequence[Cell]:
    """The set of the suite, one of all pairs, or every n-th cell, from the k-th, of `k/n`."""
    if told == "chosen":
        return read_chosen()
    if told == "pairs":
        return covering(accepted, 2)
    number, count = map(int, told.split("/"))
    return accepted[number - 1 :: count]


def outcome(cell: Cell, model: str, folder: Path) -> str:
    """`trains`, or what went wrong."""
    start = time.perf_counter()
    try:
        check_that_it_trains(cell, model, Path(tempfile.mkdtemp(dir=folder)))
    except Exception as error:  # a cell that fails is a result
        found = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    else:
        found = TRAINS
    print(f"{cell}: {found} ({time.perf_counter() - start:.0f} s)", flush=True)
    return found


def save(kept: Mapping[str, Any]) -> None:
    """Keep the results, and write the page."""
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    PAGE.write_text(page(kept))


def page(kept: Mapping[str, Any]) -> str:
    """The whole page."""
    outcomes: dict[str, set[str]] = {}
    for parts, found in kept["ran"].values():
        for pair in combinations(enumerate(parts), 2):
            outcomes.setdefault(json.dumps(pair), set()).add(found)
    reasons: dict[str, int] = {}
    pairs = {json.dumps(pair): told(outcomes.get(json.dumps(pair)), why, reasons) for *pair, why in kept["pairs"]}
    failed = [f"- {name}: {found}" for name, (_, found) in kept["ran"].items() if found != TRAINS]
    counts = {**kept["counts"], "ran": len(kept["ran"]), "trained": len(kept["ran"]) - len(failed)}
    told_of = [HEAD.format(refused=counts["planned"] - counts["accepted"], **counts)]
    told_of += [table(kinds, pairs) for kinds in TABLES]
    told_of.append("\n".join(["## Reasons\n", *(f"{number}. {why}" for why, number in reasons.items()), ""]))
    if failed:
        told_of.append("\n".join(["## What was run and did not train\n", *failed, ""]))
    return "\n".join(told_of)


def told(outcomes: set[str] | None, why: str | None, reasons: dict[str, int]) -> str:
    """What is known of a pair."""
    if outcomes is not None:
        return "runs" if outcomes == {TRAINS} else "fails"
    return "planned" if why is None else str(reasons.setdefault(why, len(reasons) + 1))


def table(kinds: tuple[int, int], pairs: Mapping[str, str]) -> str:
    """Two kinds of techniques against each other."""
    across, down = kinds
    found: dict[str, dict[str, str]] = {}
    for key, what in pairs.items():
        (first, one), (second, other) = json.loads(key)
        if {first, second} == set(kinds):
            beside, below = (one, other) if first == across else (other, one)
            found.setdefault(title(below), {})[title(beside)] = what
    columns = sorted({name for row in found.values() for name in row}, key=lambda name: (name != "none", name))
    lines = [f"## {KINDS[down].capitalize()} and {KINDS[across]}\n", "| | " + " | ".join(columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for name, row in sorted(found.items(), key=lambda item: (item[0] != "none", item[0])):
        lines.append(f"| {name} | " + " | ".join(row.get(column, "") for column in columns) + " |")
    return "\n".join(lines) + "\n"


def title(part: Any) -> str:
    """A technique in a table."""
    return " + ".join(part) if part and not isinstance(part, str) else part or "none"


if __name__ == "__main__":
    main()
