"""What a stage tells when it is done: closing metrics, and rewards and losses as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunekit.values import Artefact
from tunekit_train.picture import draw_loss

from .callbacks import told

History = Sequence[dict[str, Any]]


def closing_metrics(history: History) -> dict[str, float]:
    """The first and the last loss and reward, and what the last evaluation told."""
    evaluations = [entry for entry in history if "eval_loss" in entry]
    found: dict[str, float] = {}
    for name, prefix in (("loss", "train_loss"), ("reward", "reward")):
        points = _points(history, name)  # no rewards where answers are used again
        found |= {f"{prefix}_first": points[0][1], f"{prefix}_last": points[-1][1]}
    last = evaluations[-1] if evaluations else {}
    return {**found, **{name: value for name, value in told(last).items() if name.startswith("eval_")}}


def pictures(history: History, folder: Path) -> tuple[Artefact, ...]:
    """The rewards over the steps, those of evaluations too, as PNG."""
    train, held_out = _points(history, "reward"), _points(history, "eval_reward")
    return (Artefact("picture", draw_loss(train, held_out, folder / "reward.png", "reward")),)


def _points(history: History, name: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), entry[name]) for entry in history if entry.get(name) is not None]
