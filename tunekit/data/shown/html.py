"""Examples token by token in a notebook: inline styles that are read on light and on dark ground."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from .examples import Gap, Shown, ShownItem, ShownSequence
from .pieces import Piece

GREEN, ORANGE, RED, PURPLE = "46,160,67", "219,109,40", "218,54,51", "#a05bd6"
BLOCK = "white-space: pre-wrap; overflow-wrap: anywhere; font-family: monospace; line-height: 1.7; margin: .3em 0 1em"
TOKEN = "border-left: 1px solid rgba(128,128,128,.55)"


def draw(shown: Shown) -> str:
    """Draw all items."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in shown.notes)
    legend = _legend(shown) if shown.items else ""
    return f"<div class='tunekit-tokens'>{legend}{''.join(map(_item, shown.items))}{notes}</div>"


def _legend(shown: Shown) -> str:
    box = "padding: 0 .4em; margin-right: .6em"
    weights = "".join(
        f"<span style='background: {_background(weight, 0)}; {box}'>weight {weight:g}</span>"
        for weight in shown.weights[:6]
    )
    others = f"<span style='opacity: .6'>no loss</span> · <b style='color: {PURPLE}'>special</b>"
    return f"<p>{weights}{others} · ⏎ new line · ⇥ tab · point at a token for its id</p>"


def _item(item: ShownItem) -> str:
    facts = "".join(f" · {escape(fact)}" for fact in item.facts)
    head = f"<h4 style='margin: 1em 0 .2em'>{escape(item.stage)}: {escape(item.where)}{facts}</h4>"
    return head + "".join(map(_sequence, item.sequences))


def _sequence(sequence: ShownSequence) -> str:
    name = f"<b>{escape(sequence.name)}</b>: " if sequence.name else ""
    return f"<div>{name}<i>{escape(sequence.facts)}</i></div><div style='{BLOCK}'>{''.join(_parts(sequence))}</div>"


def _parts(sequence: ShownSequence) -> Iterator[str]:
    for number, part in enumerate(sequence.parts):
        if isinstance(part, Gap):
            yield f"<div style='opacity: .7; font-style: italic'>{escape(str(part))}</div>"
        else:
            text, title = escape(part.visible), escape(str(part), quote=True)
            yield f"<span title='{title}' style='{TOKEN}; {_style(part, number % 2)}'>{text}</span>"


def _style(piece: Piece, odd: int) -> str:
    if piece.weight:
        shade = f"background: {_background(piece.weight, odd)}"
        return f"{shade}; font-weight: bold" if piece.special else shade
    return f"color: {PURPLE}; font-weight: bold" if piece.special else "opacity: .62"


def _background(weight: float, odd: int) -> str:
    """The shade of a weight, let through by the ground; every other token is a little lighter."""
    if 0 < weight <= 1:
        return f"rgba({GREEN},{0.12 + 0.38 * weight - 0.1 * odd * weight:.2f})"
    return f"rgba({ORANGE if weight > 1 else RED},{0.5 - 0.1 * odd:.2f})"
