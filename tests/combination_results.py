"""What was planned and what was run, as docs/compatibility.json keeps it: one pair, one combination a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from combination_checks import FAILED, QUESTIONS
from combination_helpers import OPTIONS, USUAL, Cell

from tunekit.errors import PlanError, Problem

DOCS = Path(__file__).resolve().parent.parent / "docs"
KEPT, PAGE = DOCS / "compatibility.json", DOCS / "compatibility.md"
KINDS = ("quantiser", "adapter", "optimiser", "stage")
"""The parts of a combination, in their order."""


@dataclass
class Results:
    """How many combinations there are and are accepted; of every two parts that are in one, why none with both is
    accepted, None where one is; and of what was run, by name, its parts and what it has shown.
    """

    planned: int = 0
    accepted: int = 0
    pairs: list[list[Any]] = field(default_factory=list)
    ran: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Results:
        """What is kept, or nothing."""
        return cls(**json.loads(KEPT.read_text())) if KEPT.exists() else cls()

    def write(self) -> None:
        """Keep it."""
        pairs = ",\n".join(f"  {json.dumps(pair)}" for pair in self.pairs)
        ran = ",\n".join(f"  {json.dumps(name)}: {json.dumps(self.ran[name])}" for name in sorted(self.ran))
        counts = f' "planned": {self.planned},\n "accepted": {self.accepted}'
        KEPT.write_text(f'{{\n{counts},\n "pairs": [\n{pairs}\n ],\n "ran": {{\n{ran}\n }}\n}}\n')

    def add(self, cell: Cell, answers: Mapping[str, str]) -> None:
        """What a combination has shown, and what other shards have found meanwhile."""
        kept = Results.read()
        known = {name: found for name, found in kept.ran.items() if kept.pairs == self.pairs}
        self.ran = {**self.ran, **known, str(cell): [list(astuple(cell)), dict(answers)]}

    def shown(self, cell: Cell) -> bool:
        """Whether it was run and asked everything, and nothing failed."""
        answers = self.ran.get(str(cell), [[], {}])[1]
        return set(QUESTIONS) <= answers.keys() and not any(each.startswith(FAILED) for each in answers.values())

    def plan(self, refusals: Mapping[Cell, PlanError | None]) -> Sequence[Cell]:
        """Take up what the planner says, forget what was run of what it no longer accepts, and return what it does."""
        accepted = [cell for cell, refused in refusals.items() if refused is None]
        self.planned, self.accepted = len(refusals), len(accepted)
        self.pairs = json.loads(json.dumps(list(_pairs(refusals))))
        known = set(map(str, accepted))
        self.ran = {name: found for name, found in self.ran.items() if name in known}
        return accepted


def _pairs(refusals: Mapping[Cell, PlanError | None]) -> Iterator[list[Any]]:
    """Every two parts, and why all combinations of both are refused, None where one is accepted."""
    shared: dict[Any, set[str]] = {}
    alone: dict[Any, set[str]] = {}
    for cell, refused in refusals.items():
        for pair in cell.groups(2):
            told = set() if refused is None else {_put(each, pair) for each in refused.problems}
            shared[pair] = shared[pair] & told if pair in shared else told
            if refused is None or all(part == USUAL[kind] for kind, part in set(enumerate(astuple(cell))) - set(pair)):
                alone[pair] = told
    accepted = {pair for cell, refused in refusals.items() if refused is None for pair in cell.groups(2)}
    for pair in sorted(shared, key=str):
        why = None if pair in accepted else min(shared[pair] or alone[pair], key=lambda told: (len(told), told))
        yield [*pair, why]


def _put(problem: Problem, pair: Any) -> str:
    """A reason without versions, and with the kinds of the two in place of their names; its subject is the option."""
    message = re.sub(r"/\S+", "the model", re.sub(r" \([\w-]+ [\d.]+\)", "", problem.message))
    if message.startswith(("is ", "takes ", "mends ")):
        message = f"{problem.where.rpartition('.')[2]} {message}"
    for kind, part in pair:
        names = [part] if isinstance(part, str) else [*(part or ())]
        for name in reversed([*(method for each in names if (method := OPTIONS.get(each, {}).get("method"))), *names]):
            message = re.sub(rf"(?<![\w'-]){re.escape(name)}(?![\w'-])", f"the {KINDS[kind]}", message)
    return message
