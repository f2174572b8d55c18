"""The loss curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Points = Sequence[tuple[int, float]]

TRAIN, HELD_OUT, INK, GRID = "#2a6fbb", "#d1495b", "#333333", "#e6e6e6"


LOSS = "loss per supervised token (nats)"


def draw_loss(train: Points, evaluations: Points, path: Path, label: str = LOSS) -> Path:
    """Draw training loss, or what `label` says, as it was and smoothed, and the held-out one over steps, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps, losses = zip(*train, strict=True)
    axes.plot(steps, losses, color=TRAIN, alpha=0.3, linewidth=1, label="training, each entry")
    axes.plot(steps, smoothed(losses), color=TRAIN, linewidth=2, label="training, smoothed")
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), color=HELD_OUT, linewidth=2, marker="o", label="held out")
    axes.set_xlabel("optimiser step", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.legend(frameon=False, labelcolor=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png")
    partial.rename(path)
    return path


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential average over about a tenth of all values, corrected for its start as Adam's moments are."""
    keep = 1 - 1 / max(1.0, len(values) / 10)
    result, average, weight = [], 0.0, 0.0
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(average / weight)
    return result
