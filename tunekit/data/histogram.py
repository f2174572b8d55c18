"""A histogram of lengths, in the terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from .lengths import Bin, Lengths

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

EIGHTHS = "▏▎▍▌▋▊▉█"
WIDEST = 60
"""Characters of the longest bar in the terminal."""
WITHIN, BEYOND = "cyan", "red"
TEAL, RED = "#0b7a75", "#d1495b"


@dataclass(frozen=True)
class Histogram:
    """Bars over the lengths of sequences before any cut, the limit marked."""

    lengths: Lengths

    @property
    def title(self) -> str:
        """What is drawn."""
        return "Lengths in tokens, before any cut"

    def __rich__(self) -> Any:
        return _Bars(self)

    def _repr_html_(self) -> str:
        bins = self.lengths.bins()
        most = max((each.count for each in bins), default=0) or 1
        rows = "".join(_html_bar(each, each.count / most) for each in bins)
        return f"<h4>{escape(self.title)}</h4><table>{rows}</table>{self._html_note()}"

    def _html_note(self) -> str:
        if self.lengths.limit is None:
            return ""
        colours = f"<span style='color: {RED}'>■</span>"
        return f"<p style='opacity: .8'>{colours} {escape(limit_note(self.lengths))}</p>"


@dataclass(frozen=True)
class _Bars:
    """The bars as wide as the console allows."""

    histogram: Histogram

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        lengths = self.histogram.lengths
        bins = lengths.bins()
        most = max((each.count for each in bins), default=0) or 1
        names = max((len(each.name) for each in bins), default=0)
        counts = max((len(f"{each.count:,}") for each in bins), default=0)
        width = max(8, min(WIDEST, options.max_width - names - counts - 4))
        yield Text(self.histogram.title, style="bold")
        marked = lengths.limit is None
        for each in bins:
            if each.beyond and not marked:
                marked = True
                yield _marker(lengths, names, width)
            bar = _bar(each.count / most, width, options.ascii_only)
            row = Text(f"{each.name:>{names}}  ")
            row.append(bar, style=BEYOND if each.beyond else WITHIN)
            yield row.append(f" {each.count:,}" if each.count else " 0", style="" if each.count else "dim")
        if not marked:
            yield _marker(lengths, names, width)
        yield Text()


def limit_note(lengths: Lengths) -> str:
    """How many sequences are beyond the limit, in words."""
    if not lengths.beyond:
        return f"none of {lengths.sequences:,} is longer than the limit of {lengths.limit:,}"
    share = lengths.beyond / lengths.sequences
    return f"{lengths.beyond:,} of {lengths.sequences:,} are longer than the limit of {lengths.limit:,} ({share:.1%})"


def _marker(lengths: Lengths, names: int, width: int) -> Text:
    from rich.text import Text

    line = Text(" " * (names + 2))
    return line.append(limit_note(lengths), style="bold " + (BEYOND if lengths.beyond else "green"))


def _bar(share: float, width: int, ascii_only: bool) -> str:
    """A bar in eighths of a character; anything above nothing is seen."""
    if ascii_only:
        return "#" * max(round(share * width), 1 if share else 0)
    eighths = max(round(share * width * 8), 1 if share else 0)
    return "█" * (eighths // 8) + (EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")


def _html_bar(each: Bin, share: float) -> str:
    colour = RED if each.beyond else TEAL
    width = max(share * 24, 0.1 if share else 0)
    bar = f"<div style='background: {colour}; height: 1em; width: {width:.2f}em; margin-right: .5em'></div>"
    cells = (
        f"<td style='text-align: right; padding: 0 .6em'>{each.name}</td>",
        f"<td style='text-align: left; padding: 0'><div style='display: flex'>{bar}{each.count:,}</div></td>",
    )
    return f"<tr>{''.join(cells)}</tr>"
