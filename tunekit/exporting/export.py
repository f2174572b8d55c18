"""What an export came to, to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..display import Section, html, terminal
from ..values import Verification

DETAILS = "export.json"
CARD = "README.md"


@dataclass(frozen=True)
class Export:
    """An export that says what was trained: its folder, its target, and how it compares."""

    name: str
    target: str
    folder: Path
    verification: Verification
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Export({self.name}, {str(self.folder)!r}, KL {self.verification.kl:.3g})"

    def __rich__(self) -> Any:
        return terminal([self._section()])

    def _repr_html_(self) -> str:
        return html([self._section()])

    def _section(self) -> Section:
        rows = (("folder", str(self.folder)), *comparison(self.verification))
        return Section(f"Export {self.name}", (), rows)


def comparison(found: Verification) -> tuple[tuple[str, str], ...]:
    """How it compares, one line for each number."""
    kind = "held out from training" if found.held_out else "that were trained on, since none was held out"
    return (
        ("compared on", f"{found.tokens:,} tokens of {found.rows} rows {kind}"),
        ("read by", found.reader),
        ("KL from the trained model", f"{found.kl:.3g} nats a token"),
        ("KL of the base from it", f"{found.base_kl:.3g} nats a token"),
        ("same likeliest token", f"{found.top1:.2%}"),
        ("perplexity", f"{found.perplexity:.4g}"),
        ("perplexity of the trained model", f"{found.trained_perplexity:.4g}"),
        ("perplexity of the base", f"{found.base_perplexity:.4g}"),
    )
