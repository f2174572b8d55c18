"""The curves of one stage as a picture, in the manner of the one that every run draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages import Lesson, Panel

from tunekit_train.picture import GRID, HELD_OUT, INK, TRAIN, smoothed

SECOND = "#7d8597"
Kept = dict[str, Any]


def draw(lesson: Lesson, kept: Kept, path: Path) -> None:
    """Draw all panels of a stage side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(lesson.panels)
    figure = Figure(figsize=(4.8 * count if count > 1 else 6.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, axes in zip(lesson.panels, figure.subplots(1, count, squeeze=False)[0], strict=True):
        if len(panel.metrics) > 1:
            _compare(axes, panel, kept)
        else:
            _follow(axes, panel, kept)
        _finish(axes, panel)
    figure.savefig(path, dpi=150)


def points(kept: Kept, kind: str, metric: str) -> list[tuple[int, float]]:
    """A metric over the steps: `step` while training, `evaluated` on the held-out rows, which begin before step 1."""
    return [(line["step"], line[metric]) for line in kept["lines"] if line["kind"] == kind and metric in line]


def _follow(axes: Any, panel: Panel, kept: Kept) -> None:
    """A metric while training, as it was and smoothed, and on the held-out rows."""
    (metric,) = panel.metrics
    steps, values = zip(*points(kept, "step", metric), strict=True)
    axes.plot(steps, values, color=TRAIN, alpha=0.22, linewidth=1)
    axes.plot(steps, smoothed(values), color=TRAIN, linewidth=2, label="training, smoothed")
    places, held_out = zip(*points(kept, "evaluated", metric), strict=True)
    axes.plot(places, held_out, color=HELD_OUT, linewidth=2, marker="o", label="held out")
    if panel.share:  # before the first step it is no estimate: every pair is a tie
        bounds = [interval(value, kept["held_out"]) for value in held_out[1:]]
        axes.vlines(places[1:], *zip(*bounds, strict=True), color=HELD_OUT, linewidth=1)


def _compare(axes: Any, panel: Panel, kept: Kept) -> None:
    """Several metrics of the held-out rows."""
    for metric, colour in zip(panel.metrics, (TRAIN, HELD_OUT), strict=True):
        told = metric.replace("_", ", ").replace("reward, ", "called ")
        axes.plot(
            *zip(*points(kept, "evaluated", metric), strict=True), color=colour, linewidth=2, marker="o", label=told
        )


def _finish(axes: Any, panel: Panel) -> None:
    if panel.level is not None:
        height, meaning = panel.level
        axes.axhline(height, color=SECOND, linewidth=1, linestyle=(0, (4, 3)))
        where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate(meaning, (1, height), color=SECOND, fontsize=8.5, **where)
    if panel.share:
        axes.set_ylim(0, 1.02)
    axes.set_xlabel("optimiser step", color=INK)
    axes.set_title(panel.label, color=INK, fontsize=10, loc="left")
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8.5)


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count`: *Probable Inference*, E. B. Wilson, JASA 22 (1927)."""
    centre = share + z * z / (2 * count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return (centre - half) / (1 + z * z / count), (centre + half) / (1 + z * z / count)
