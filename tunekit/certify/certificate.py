"""What was compared, what was the same, and what differed first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..display import Section, html, terminal
from ..record import read_json, write_json

FILE = "certificate.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One thing of one stage that was compared: how many values or files, and where they differ first, if they do."""

    stage: str
    what: str
    compared: int
    difference: str = ""


@dataclass(frozen=True)
class Certificate:
    """The outcome of certifying a recipe: `parts` in the order in which a difference would show first.

    `steps` is k: each stage was trained for 2k + 1 steps, in one go and killed after step k, and its states at k and 2k
    are part of what was compared. A stage that saves at some steps only, such as `ppo` between rollouts, is killed
    after the first of these that follows.
    """

    folder: Path
    steps: int
    parts: tuple[Part, ...]

    @property
    def ok(self) -> bool:
        """Whether everything was the same, bit by bit."""
        return bool(self.parts) and not self.differences

    @property
    def differences(self) -> tuple[Part, ...]:
        """What was not the same."""
        return tuple(part for part in self.parts if part.difference)

    @property
    def verdict(self) -> str:
        """The outcome in words; where something differed, what and where first."""
        if self.ok:
            return f"killed and resumed in each stage, it reaches the same bits: {len(self.parts)} parts compared"
        if not self.parts:
            return "nothing was compared"
        first, count = self.differences[0], len(self.differences)
        found = f"{first.what} of {first.stage}: {first.difference}"
        return f"{count} of {len(self.parts)} parts differ; first {found}"

    def save(self) -> None:
        """Write it into its folder."""
        told = {"ok": self.ok, "verdict": self.verdict, "steps": self.steps}
        write_json(self.folder / FILE, {**told, "parts": [asdict(part) for part in self.parts]})

    @classmethod
    def load(cls, folder: Path) -> Certificate:
        """Read the one in a folder."""
        read: Mapping[str, Any] = read_json(folder / FILE)
        return cls(folder, read["steps"], tuple(Part(**part) for part in read["parts"]))

    def __rich__(self) -> Any:
        return terminal([self._section()])

    def _repr_html_(self) -> str:
        return html([self._section()])

    def _section(self) -> Section:
        columns = ("stage", "what", "compared", "")
        rows = ((each.stage, each.what, str(each.compared), each.difference or "the same") for each in self.parts)
        return Section("Resumed against uninterrupted", columns, tuple(rows), frozenset({"compared"}), self.verdict)
