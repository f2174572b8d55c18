"""The last line of a report on data: whether a run would start."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """Good or bad news in one line."""

    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'✓' if self.ok else '✗'} {self.text}"

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(f"{self}\n", style="bold green" if self.ok else "bold red")

    def _repr_html_(self) -> str:
        colour = "#0b7a75" if self.ok else "#d1495b"
        return f"<p style='color: {colour}; font-weight: bold'>{escape(str(self))}</p>"
