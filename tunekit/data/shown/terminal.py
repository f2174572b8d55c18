"""Examples token by token in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.text import Text

from .examples import Gap, Shown, ShownSequence
from .pieces import Piece

if TYPE_CHECKING:
    Colour = tuple[int, int, int]

PALE, FULL, MORE, LESS = (228, 240, 190), (110, 205, 140), (245, 175, 100), (240, 130, 130)
"""Backgrounds of a supervised token: nearly no weight, weight 1, more than 1, less than 0."""
FEW = {"standard", "windows"}
"""Colour systems of sixteen colours, which have no shades."""
BORDER, OPEN, CLOSE = "│", "⟦", "⟧"


def draw(shown: Shown, colours: str | None) -> Iterator[RenderableType]:
    """Draw all items in a colour system of rich; without one, with brackets around what is supervised."""
    few = colours in FEW
    if shown.items:
        yield _plain_legend() if colours is None else _legend(shown, few)
    for item in shown.items:
        yield Text.assemble(("\n── ", "dim"), (f"{item.stage}: {item.where}", "bold"))
        if item.facts:
            yield Text(", ".join(item.facts), style="cyan")
        for sequence in item.sequences:
            name = f"{sequence.name}: " if sequence.name else ""
            yield Text(f"{name}{sequence.facts}", style="italic")
            text = _plain(sequence) if colours is None else _coloured(sequence, few)
            yield Padding(text, (0, 0, 0, 2), expand=False)
    for note in shown.notes:
        yield Text(note, style="yellow")


def _plain_legend() -> Text:
    return Text(f"{OPEN}supervised{CLOSE}; {BORDER} between tokens; ⏎ new line, ⇥ tab")


def _legend(shown: Shown, few: bool) -> Text:
    legend = Text()
    for number, weight in enumerate(shown.weights[:6]):
        legend.append("  " if number else "").append(f" weight {weight:g} ", _ground(weight, 0, few))
    if shown.weights:
        legend.append("  ")
    legend.append("no loss", "dim").append("  ").append("special", "bold magenta")
    return legend.append("  ⏎\u00a0new\u00a0line  ⇥\u00a0tab").append("  shading alternates by token", "dim")


def _coloured(sequence: ShownSequence, few: bool) -> Text:
    text = Text(overflow="fold")
    for number, part in enumerate(sequence.parts):
        if isinstance(part, Gap):
            text.append(f"\n{part}\n" if number else f"{part}\n", "italic yellow")
        else:
            text.append(part.visible, _style(part, number % 2, few))
    return _ended(text)


def _plain(sequence: ShownSequence) -> Text:
    text, inside = Text(overflow="fold"), False
    for number, part in enumerate(sequence.parts):
        supervised = isinstance(part, Piece) and bool(part.weight)
        if inside and not supervised:
            text.append(CLOSE)
        elif number and not (supervised and not inside):
            text.append(BORDER)
        if supervised and not inside:
            text.append(OPEN)
        inside = supervised
        text.append(part.visible if isinstance(part, Piece) else f"\n{part}\n")
    return _ended(text.append(CLOSE) if inside else text)


def _ended(text: Text) -> Text:
    """Without the new line that a mark for one brings at the very end."""
    if text.plain.endswith("\n"):
        text.right_crop(1)
    return text


def _style(piece: Piece, odd: int, few: bool) -> Style:
    if piece.weight:
        return _ground(piece.weight, odd, few) + Style(bold=piece.special)
    if piece.special:
        return Style(color="magenta", bold=True)
    return Style(dim=True, underline=bool(odd))


def _ground(weight: float, odd: int, few: bool) -> Style:
    """What a supervised token stands on: the shade of its weight; every other token is a little lighter."""
    if few:
        name = "green" if weight == 1 else "cyan" if weight > 1 else "yellow" if weight > 0 else "red"
        return Style(bgcolor=f"bright_{name}" if odd else name, color="black", underline=bool(odd))
    colour = _mixed(PALE, FULL, weight) if 0 < weight <= 1 else MORE if weight > 1 else LESS
    red, green, blue = _mixed(colour, (255, 255, 255), 0.45) if odd else colour
    return Style(bgcolor=f"#{red:02x}{green:02x}{blue:02x}", color="#101010")


def _mixed(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(one + (other - one) * share) for one, other in zip(first, second, strict=True))
    return red, green, blue
