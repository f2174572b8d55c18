"""The last line of a report on data: whether a run would start."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from ..errors import Problem
from ..values import Account


@dataclass(frozen=True)
class Verdict:
    """Whether a run would start with this data, and if not, why not and what to do."""

    account: Account
    problems: tuple[Problem, ...]

    def __str__(self) -> str:
        if not self.problems:
            return f"✓ a run would start, on {self.account.kept:,} of {self.account.rows:,} rows"
        if not self.account.stopping:
            return f"✗ a run would stop: {self.problems[0]}"
        rows = f"{self.account.stopping:,} of {self.account.rows:,} rows cannot be used"
        return f"✗ a run would stop: {rows}; {self.problems[-1].remedy}"

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(f"{self}\n", style="bold red" if self.problems else "bold green")

    def _repr_html_(self) -> str:
        colour = "#d1495b" if self.problems else "#0b7a75"
        return f"<p style='color: {colour}; font-weight: bold'>{escape(str(self))}</p>"
