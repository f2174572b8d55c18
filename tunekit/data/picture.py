"""The lengths of every stage's sequences as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import TunekitError
from .histogram import limit_note
from .lengths import Bin, Lengths

WITHIN, BEYOND, INK, GRID = "#2a6fbb", "#d1495b", "#333333", "#e6e6e6"
BARS = 48


def draw_lengths(lengths: Sequence[tuple[str, Lengths]], path: Path) -> Path:
    """Draw one histogram for each stage, each with its name, below each other, as PNG. The limit is a dashed line.

    Raises TunekitError where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise TunekitError("the picture is drawn with matplotlib, which is not installed",
                           "`pip install matplotlib`, or leave --picture out") from error  # fmt: skip
    figure = Figure(figsize=(8, 0.6 + 3.4 * len(lengths)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(lengths), 1, squeeze=False)
    for axes, (name, counted) in zip(rows[:, 0], lengths, strict=True):
        _draw_one(axes, name, counted)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png")
    partial.replace(path)
    return path


def _draw_one(axes: Any, name: str, lengths: Lengths) -> None:
    bins = lengths.bins(BARS)
    for beyond, colour in ((False, WITHIN), (True, BEYOND)):
        _draw_bars(axes, [each for each in bins if each.beyond == beyond], colour)
    axes.set_title(name, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("tokens of a sequence, before any cut", color=INK)
    axes.set_ylabel("sequences", color=INK)
    axes.grid(color=GRID, linewidth=0.8, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    if lengths.counts:
        _mark(axes, lengths)


def _draw_bars(axes: Any, bins: list[Bin], colour: str) -> None:
    starts = [each.first - 0.5 for each in bins]
    widths = [each.last - each.first + 1 for each in bins]
    axes.bar(
        starts, [each.count for each in bins], widths, align="edge", color=colour, edgecolor="white", linewidth=0.6
    )


def _mark(axes: Any, lengths: Lengths) -> None:
    """Scale the axis by the data, and mark the limit and the median."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    if lengths.spread:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:,.0f}"))
    quantiles = ", ".join(f"{name} {value:,}" for name, value in lengths.to_mapping().items())
    told = [f"{lengths.sequences:,} sequences: {quantiles}"]
    if lengths.limit is not None:
        told.append(limit_note(lengths))
        if lengths.limit < 2 * lengths.quantile(1.0):
            axes.axvline(lengths.limit + 0.5, color=BEYOND, linestyle="--", linewidth=1.2)
            place = (lengths.limit + 0.5, 1.0)
            axes.annotate(
                f" limit {lengths.limit:,}",
                place,
                xycoords=axes.get_xaxis_transform(),
                color=BEYOND,
                fontsize=9,
                va="top",
            )
    axes.set_title("\n".join(told), loc="right", fontsize=8, color=INK)
