"""Data on its way from a file to what a stage trains on: source, rows, examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Source:
    """One data set as the recipe names it.

    `path` is a file, a folder, or the name of a data set on a hub; `rows` are rows given in Python instead. `format`
    names a format plugin (None: recognised by its columns), `columns` renames columns (`{instruction: question}`),
    `limit` keeps the first so many rows, `bad_rows` says whether a row that cannot be used stops the run or is counted
    and left out. `key` is where the recipe says all this.
    """

    path: str | None = None
    rows: Sequence[Mapping[str, Any]] | None = None
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"
    limit: int | None = None
    bad_rows: Literal["error", "drop"] = "error"
    key: str = "data"

    @property
    def name(self) -> str:
        """What to call the source in messages."""
        return self.path if self.path is not None else f"{self.key} (rows given in Python)"


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read: its number from 1, where it stands (`alpaca.json, row 17`), and its values by column."""

    number: int
    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """A source opened for reading. `read()` starts a fresh pass each time; columns are those of the first row.

    `fingerprint` changes whenever a byte of the data does.
    """

    source: Source
    columns: tuple[str, ...]
    read: Callable[[], Iterator[Row]]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `weight` scales its loss: 0 leaves it out, None follows the stage's rule."""

    role: Role
    content: str
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """The canonical example: a conversation (`messages`) or a document (`text`), never both.

    `row` and `where` lead back to the row it was made from. `optional`: leave it out and count it where it turns out
    that it cannot be trained on, rather than stop (the source says `bad_rows: drop`).
    """

    row: int
    where: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not an example: why, and what to do."""

    row: int
    where: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Examples:
    """The examples of a source or of several, with an account of every row that was read."""

    examples: tuple[Example, ...]
    rows: int
    bad: tuple[BadRow, ...] = ()
    formats: tuple[str, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @property
    def accounting(self) -> dict[str, Any]:
        """Rows read, kept and left out with reasons and row numbers; the three always add up."""
        reasons = Counter(bad.reason for bad in self.bad)
        return {
            "rows": self.rows,
            "kept": len(self.examples),
            "left_out": len(self.bad),
            "reasons": dict(reasons),
            "left_out_rows": [bad.where for bad in self.bad],
            "formats": list(self.formats),
            "fingerprints": dict(self.fingerprints),
        }
