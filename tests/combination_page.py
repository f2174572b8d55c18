"""The page docs/compatibility.md, made of docs/compatibility.json and of nothing else."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from combination_checks import FAILED, QUESTIONS, REFUSED
from combination_results import KINDS, Results

RAN, ACCEPTED, BROKEN = "●", "○", "✗"
TABLES = ((0, 1), (2, 1), (3, 1), (0, 2), (0, 3), (2, 3))
"""Which kinds stand across and down."""

HEAD = """# What goes together

Every quantiser with every adapter, optimiser and stage that is installed are **{planned:,}** combinations. The planner
was asked about each of them: it accepts **{accepted:,}** and refuses {refused:,}, with a reason and before anything is
loaded. **{ran:,}** of those it accepts were run, on a tiny model on a CPU, each technique with the options that fit it;
**{shown:,}** of these showed all that was asked of them. The others were planned, and not run.

| in the tables | |
|---|---|
| {RAN} | combinations of these two were run, and showed all that was asked |
| {ACCEPTED} | accepted by the planner; none was run |
| {BROKEN} | one was run, and did not show all: see [what failed](#what-failed) |
| a letter | refused, whatever else is in the recipe, for [this reason](#reasons) |
"""
ASKED = {
    "trains": "the loss falls; every parameter that the plan says trains moves, and nothing else by one bit",
    "gradients": "loss and all gradients of the first step are those of the plain computation: padded, with eager "
    "attention, nothing folded, shared or kept",
    "resumes": "stopped by Ctrl-C after two steps and resumed, it reaches the same losses and weights to the bit",
    "exports": "merged, or else the adapter alone, is read again and says what was trained",
}
"""What each question asks. In stages that learn from their own answers the loss need not fall: it tells no progress."""
FOOT = """
`nox -s combos` runs a set in which every two techniques that can go together do so once, and
`nox -s combos -- all --shard 1/8` an eighth of all; both write this page. The suite runs a smaller set, in which each
technique is once.
"""


def page(results: Results) -> str:
    """The whole page."""
    answers = {name: found for name, (_, found) in results.ran.items()}
    failed = [f"- `{name}`, {question}: {said}" for name, question, said in _failed(answers)]
    counts = {"planned": results.planned, "accepted": results.accepted, "refused": results.planned - results.accepted}
    shown = len(answers) - len({name for name, *_ in _failed(answers)})
    head = HEAD.format(**counts, ran=len(answers), shown=shown, RAN=RAN, ACCEPTED=ACCEPTED, BROKEN=BROKEN)
    letters: dict[str, str] = {}
    symbols = _symbols(results, letters)
    told = [head, _asked(answers), *(_table(kinds, symbols) for kinds in TABLES)]
    told.append("\n".join(["## Reasons\n", *(f"- **{letter}**: {why}" for why, letter in letters.items()), ""]))
    told.append("\n".join(["## What failed\n", *(failed or ["Nothing of what was run."]), FOOT]))
    return "\n".join(told)


def _failed(answers: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, str]]:
    return [
        (name, question, answer.removeprefix(f"{FAILED}: "))
        for name, found in answers.items()
        for question, answer in found.items()
        if answer.startswith(FAILED)
    ]


def _asked(answers: Mapping[str, Mapping[str, str]]) -> str:
    """How many have shown what, and why some are not asked."""
    lines = ["## What was asked\n", "| | asked | shown | refused | failed |", "|---|---|---|---|---|"]
    why = Counter[str]()
    for question in QUESTIONS:
        said = [found[question] for found in answers.values() if question in found]
        refused = [each for each in said if each.startswith(REFUSED)]
        bad = sum(each.startswith(FAILED) for each in said)
        lines.append(f"| {question} | {ASKED[question]} | {len(said) - bad - len(refused)} | {len(refused)} | {bad} |")
        for each in said:
            why.update(f"{question}: {part}" for part in each.split("; ") if part.startswith(REFUSED))
    notes = [f"- {reason}: {count}" for reason, count in why.most_common()]
    return "\n".join([*lines, "", *(["Refused, with how often:\n", *notes, ""] if notes else [])])


def _symbols(results: Results, letters: dict[str, str]) -> dict[str, str]:
    """What is known of each pair, by the pair as JSON writes it."""
    outcomes: dict[str, set[bool]] = {}
    for parts, found in results.ran.values():
        good = not any(answer.startswith(FAILED) for answer in found.values())
        for pair in combinations(enumerate(parts), 2):
            outcomes.setdefault(json.dumps(pair), set()).add(good)
    symbols = {}
    for *pair, why in results.pairs:
        key = json.dumps(pair)
        if key in outcomes:
            symbols[key] = RAN if all(outcomes[key]) else BROKEN
        else:
            symbols[key] = ACCEPTED if why is None else letters.setdefault(why, _letter(len(letters)))
    return symbols


def _letter(number: int) -> str:
    letters = string.ascii_lowercase
    return letters[number] if number < len(letters) else letters[number // len(letters) - 1] + _letter(number % 26)


def _table(kinds: tuple[int, int], symbols: Mapping[str, str]) -> str:
    """Two kinds of techniques against each other."""
    across, down = kinds
    found: dict[str, dict[str, str]] = {}
    for key, what in symbols.items():
        (first, one), (second, other) = json.loads(key)
        if {first, second} == set(kinds):
            beside, below = (one, other) if first == across else (other, one)
            found.setdefault(_title(below), {})[_title(beside)] = what
    columns = sorted({name for row in found.values() for name in row}, key=lambda name: (name != "none", name))
    lines = [f"## {KINDS[down].capitalize()} and {KINDS[across]}\n", "| | " + " | ".join(columns) + " |"]
    lines.append("|---|" + ":-:|" * len(columns))
    for name, row in sorted(found.items(), key=lambda item: (item[0] != "none", item[0])):
        lines.append(f"| {name} | " + " | ".join(row.get(column, "") for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _title(part: Any) -> str:
    """A technique in a table."""
    return " + ".join(part) if part and not isinstance(part, str) else part or "none"
