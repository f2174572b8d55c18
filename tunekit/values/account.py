"""An account of the data: what became of every row, and what the tokens look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError, Problem

SHOWN = 20
"""Rows that an error names one by one; the rest are counted."""
KEPT = 100
"""Places that an account keeps of each thing it counts."""


@dataclass
class Places:
    """How often something happened, and the first places where it did."""

    count: int = 0
    where: list[str] = field(default_factory=list)

    def add(self, where: str, times: int = 1) -> None:
        """Count it once more."""
        self.count += times
        if len(self.where) < KEPT:
            self.where.append(where)


@dataclass
class SourceAccount:
    """What became of the rows of one source.

    `rows` were read; each is an example that was kept, was left out (`left_out`, by reason) or was `dropped` because
    the recipe asks for it where a row is too long. Of those kept, `cut` were shortened and `split` became several.
    `duplicates` say the same as an earlier row. `lengths` counts sequences by their tokens before any cut, those that
    were dropped among them, and what was split as one. `joined`: some sequences hold parts of several rows, and lead
    back to the first of them.
    """

    name: str
    format: str = ""
    fingerprint: str = ""
    rows: int = 0
    left_out: dict[str, Places] = field(default_factory=dict)
    dropped: Places = field(default_factory=Places)
    cut: Places = field(default_factory=Places)
    split: Places = field(default_factory=Places)
    duplicates: Places = field(default_factory=Places)
    sequences: int = 0
    tokens: int = 0
    supervised: int = 0
    tokens_cut: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    joined: bool = False

    @property
    def kept(self) -> int:
        """Rows that are trained on."""
        return self.rows - self.dropped.count - sum(places.count for places in self.left_out.values())

    def to_mapping(self) -> dict[str, Any]:
        """Plain data; `from_mapping` reads it back."""
        places = {name: vars(getattr(self, name)) for name in ("dropped", "cut", "split", "duplicates")}
        left_out = {reason: vars(places) for reason, places in self.left_out.items()}
        lengths = {str(length): count for length, count in sorted(self.lengths.items())}
        return {**vars(self), "kept": self.kept, **places, "left_out": left_out, "lengths": lengths}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> SourceAccount:
        """Read it back."""
        values = {name: value for name, value in mapping.items() if name != "kept"}
        for name in ("dropped", "cut", "split", "duplicates"):
            values[name] = Places(**values[name])
        values["left_out"] = {reason: Places(**places) for reason, places in values["left_out"].items()}
        values["lengths"] = Counter({int(length): count for length, count in values["lengths"].items()})
        return cls(**values)


class Account:
    """The accounts of all sources of a stage, and the problems that stop it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin afresh."""
        self.sources: dict[str, SourceAccount] = {}
        self.problems: list[Problem] = []
        self.stopping = 0

    def source(self, name: str) -> SourceAccount:
        """The account of one source; opened where it is new."""
        return self.sources.setdefault(name, SourceAccount(name))

    def leave_out(self, source: str, where: str, reason: str, remedy: str = "", optional: bool = False) -> None:
        """Note a row that cannot be trained on; where it is not `optional`, `stop_on_problems` will tell it."""
        self.source(source).left_out.setdefault(reason, Places()).add(where)
        if optional:
            return
        self.stopping += 1
        if len(self.problems) < SHOWN:
            self.problems.append(Problem(where, reason, remedy))

    def stop_on_problems(self) -> None:
        """Raise DataError with all that was noted, if anything was, or where no row is left at all."""
        if self.problems:
            more = self.stopping - len(self.problems)
            remedy = "mend the rows, or count and drop them with `bad_rows: drop`"
            told = f"and {more} more" if more else f"{self.stopping} rows in all cannot be used"
            raise DataError([*self.problems, Problem("", told, remedy)])
        if not self.kept:
            names = ", ".join(self.sources) or "data"
            raise DataError([Problem(names, "holds no example to train on", self._why_none())])

    @property
    def rows(self) -> int:
        """Rows read in all."""
        return sum(source.rows for source in self.sources.values())

    @property
    def kept(self) -> int:
        """Rows trained on in all."""
        return sum(source.kept for source in self.sources.values())

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, by source."""
        return {name: source.to_mapping() for name, source in self.sources.items()}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Account:
        """Read an account back."""
        account = cls()
        account.sources = {name: SourceAccount.from_mapping(source) for name, source in mapping.items()}
        return account

    def _why_none(self) -> str:
        reasons = [reason for source in self.sources.values() for reason in source.left_out]
        return f"every row was left out: {reasons[0]}" if reasons else "give at least one row"
