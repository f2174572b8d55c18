"""Which characters of a rendered conversation are trained, and with what weight."""

from __future__ import annotations

from . import faults
from .talks import Talk
from .turns import Fitted, Placed, Rendering, WeightedSpan

KEPT = 64
"""Weightings of one frame kept at a time."""


def supervise(talk: Talk, placed: Placed) -> list[WeightedSpan]:
    """The spans that weigh otherwise than the rest; a later one goes before an earlier one. Raises Fault.

    Fault where the template loses something, where a turn's place cannot be told, and where no answer that is trained
    ends with a special token.
    """
    rendering = placed.rendering if isinstance(placed, Fitted) else placed
    if rendering.missing:
        _require_shown(talk, rendering)
    key = (tuple(talk.weights.items()), talk.rest)
    spans = rendering.spans.get(key)
    if spans is None:
        if len(rendering.spans) >= KEPT:
            rendering.spans.clear()
        spans = rendering.spans.setdefault(key, tuple(_spans(talk, rendering)))
    if isinstance(placed, Fitted):
        return [(placed.place(start), placed.place(end), weight) for start, end, weight in spans]
    return list(spans)


def _spans(talk: Talk, rendering: Rendering) -> list[WeightedSpan]:
    found: list[WeightedSpan] = []
    endings = []
    for index, message in enumerate(talk.messages):
        weight = talk.weight(index)
        answers = message.role == "assistant" and weight != 0
        if weight == talk.rest and not (answers and talk.rest):
            continue
        turn = rendering.turn(index)
        if turn is None:
            if weight != talk.rest:
                raise faults.rewritten(index)
            continue
        if answers:
            endings.append(turn.ended)
        if weight != talk.rest:
            found += [(start, end, weight) for start, end in turn.spans]
        if turn.thought and weight:
            found.append((*turn.thought, 0.0))
    if endings and not any(endings):
        raise faults.never_ends()
    return found


def _require_shown(talk: Talk, rendering: Rendering) -> None:
    """Nothing is lost but what weighs nothing, and thinking of answers before the last."""
    roles = [message.role for message in talk.messages]
    last = max((index for index, role in enumerate(roles) if role == "assistant"), default=-1)
    for index, part, _ in rendering.missing:
        if talk.messages[index].weight == 0:
            continue
        if part == "call":
            raise faults.swallowed_call(index)
        if part == "content":
            raise faults.swallowed(index, roles[index])
        if index == last and "user" not in roles[index:]:
            raise faults.swallowed_thinking(index)
