"""The example files that the demo uses: shipped inside the wheel, or beside the package in a checkout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out question, the kind of answer it expects, and patterns of which one has to match besides."""

    text: str
    kind: str
    key: tuple[str, ...] = ()


def example_path(*parts: str) -> Path:
    """Find an example file: `example_path("recipes", "quickstart.yaml")`."""
    shipped = PACKAGE / "examples"
    return (shipped if shipped.exists() else PACKAGE.parent / "examples").joinpath(*parts)


def read_rows(name: str) -> list[dict[str, Any]]:
    """Read a JSONL file of `examples/data`."""
    return [json.loads(line) for line in example_path("data", name).read_text(encoding="utf-8").splitlines() if line]


def held_out() -> list[Question]:
    """The questions that no training row asks, each with what its answer has to show."""
    return [_question(row) for row in read_rows("persona_heldout.jsonl")]


def _question(row: Mapping[str, Any]) -> Question:
    key = row.get("key", ())
    return Question(row["messages"][-1]["content"], row["expect"], tuple([key] if isinstance(key, str) else key))
