"""Frames: what a template writes around the messages of a conversation, found once for all conversations of a shape.

A frame is a rendering with a private sentinel in the place of every content. Where a row's own rendering is its frame
filled with the row's contents, the turns of the row follow by arithmetic. Where it is not, because the template looks
at what messages say, each content of that row is probed by itself.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tunekit.values import Message

from . import faults
from .fences import PROBE, Fences
from .script import Messages, Script
from .talks import Talk
from .template import Template
from .turns import Address, Fitted, Part, Placed, Rendering, Slot

FRAMES = 1024
"""Frames kept at a time: shapes of conversations met last."""

_SENTINEL = re.compile(f"{PROBE}([0-9]+){PROBE}")
_WRITTEN: tuple[Callable[[str], str], ...] = (
    str,
    str.strip,
    lambda text: text.strip("\n"),
    lambda text: text.lstrip("\n"),
    str.lstrip,
    str.rstrip,
)
"""How templates write contents: as they are, or without blanks around them."""


class Frame:
    """A rendering with sentinels, and how to fit the rendering of a row into it."""

    def __init__(self, rendering: Rendering, addresses: list[Address]) -> None:
        self.rendering = rendering
        parts = _SENTINEL.split(rendering.text)
        self.literals = parts[0::2]
        self.addresses = [addresses[int(number)] for number in parts[1::2]]
        self.ends = [slot.end or 0 for slot in rendering.slots]
        self.widths = [(slot.end or 0) - (slot.start or 0) for slot in rendering.slots]

    def fit(self, text: str, messages: Messages) -> Fitted | None:
        """The rendering moved into a row's text; None where that is not the frame filled with the row's contents."""
        literals = self.literals
        if not text.startswith(literals[0]):
            return None
        place, shift, shifts = len(literals[0]), 0, [0]
        for (index, part, call), width, literal in zip(self.addresses, self.widths, literals[1:], strict=True):
            filled = _filled(text, place, _said(messages[index], part, call), literal)
            if filled is None:
                return None
            shift += filled - width
            shifts.append(shift)
            place += filled + len(literal)
        return Fitted(self.rendering, text, self.ends, shifts) if place == len(text) else None


class Frames:
    """Places the messages of conversations in their rendered texts."""

    def __init__(self, template: Template, fences: Fences, masks: bool) -> None:
        self.template = template
        self.fences = fences
        self.masks = masks
        self._kept: OrderedDict[object, Frame | None] = OrderedDict()

    def script(self, talk: Talk) -> Script:
        """What the template is given for a talk."""
        return Script(talk.messages, [dict(tool) for tool in talk.tools] or None, self.template)

    def render(self, script: Script) -> tuple[Script, str]:
        """Render a conversation. Tool calls are given as transformers documents it, with their arguments as a mapping.

        Where a template wants them as JSON, because it refuses a mapping or writes it as Python does, it gets that; the
        script that is returned says so.
        """
        written = replace(script, json_arguments=True)
        calls = [call for message in script.messages for call in message.tool_calls]
        try:
            text = script.render()
        except faults.Fault:
            if not calls:
                raise
            return written, written.render()
        as_python = any(call.arguments and repr(dict(call.arguments)) in text for call in calls)
        return (written, written.render()) if as_python else (script, text)

    def place(self, script: Script, text: str) -> Placed:
        """Find the turns of a rendered text. Raises Fault."""
        frame = self._frame(script)
        return (frame.fit(text, script.messages) if frame else None) or self._probed(script, text)

    def _frame(self, script: Script) -> Frame | None:
        """The frame of a shape; None where the template refuses sentinels."""
        shape = None if script.tools else _shape(script.messages)
        if shape is None:
            return self._make(script)
        if shape in self._kept:
            self._kept.move_to_end(shape)
            return self._kept[shape]
        if len(self._kept) >= FRAMES:
            self._kept.popitem(last=False)
        return self._kept.setdefault(shape, self._make(script))

    def _make(self, script: Script) -> Frame | None:
        addresses = list(_addresses(script.messages))
        messages = script.messages
        for number, address in enumerate(addresses):
            messages = _saying(messages, address, f"{PROBE}{number}{PROBE}")
        framed = replace(script, messages=messages)
        try:
            text = framed.render()
        except faults.Fault:
            return None
        return Frame(self._rendering(text, list(_slots(text, addresses)), framed), addresses)

    def _rendering(self, text: str, slots: list[Slot], script: Script) -> Rendering:
        shown = {(slot.message, slot.part, slot.call) for slot in slots}
        missing = tuple(address for address in _addresses(script.messages) if address not in shown)
        return Rendering(text, tuple(slots), missing, script, self.fences, self.masks)

    def _probed(self, script: Script, text: str) -> Rendering:
        """Find each part of the messages by rendering with a probe in its place alone."""
        slots = []
        for address in _addresses(script.messages):
            index, part, call = address
            probed = replace(script, messages=_saying(script.messages, address, PROBE))
            before, found, after = probed.render().partition(PROBE)
            if not found:
                continue
            start = len(before) if PROBE not in after and text.startswith(before) else None
            end = len(text) - len(after) if PROBE not in after and text.endswith(after) else None
            slots.append(Slot(index, part, start, end, call))
        return self._rendering(text, slots, script)


def _shape(messages: Messages) -> object:
    """What messages of one frame have in common; None where tools make each conversation a shape of its own."""
    found = []
    for message in messages:
        if message.tool_calls or message.name is not None or message.call is not None:
            return None
        found.append((message.role, message.thinking and "text", message.content != ""))
    return tuple(found)


def _addresses(messages: Messages) -> Iterator[Address]:
    """The parts of messages that say something."""
    for index, message in enumerate(messages):
        if message.thinking:
            yield index, "thinking", 0
        if message.content:
            yield index, "content", 0
        for call in range(len(message.tool_calls)):
            yield index, "call", call


def _said(message: Message, part: Part, call: int) -> str:
    if part == "call":
        return message.tool_calls[call].name
    return (message.thinking or "") if part == "thinking" else message.content


def _saying(messages: Messages, address: Address, text: str) -> Messages:
    """The messages with something else said in one place."""
    index, part, call = address
    message = messages[index]
    changed: dict[str, Any] = {part: text}
    if part == "call":
        calls = message.tool_calls
        changed = {"tool_calls": (*calls[:call], replace(calls[call], name=text), *calls[call + 1 :])}
    return (*messages[:index], replace(message, **changed), *messages[index + 1 :])


def _slots(text: str, addresses: list[Address]) -> Iterator[Slot]:
    for sentinel in _SENTINEL.finditer(text):
        index, part, call = addresses[int(sentinel.group(1))]
        yield Slot(index, part, sentinel.start(), sentinel.end(), call)


def _filled(text: str, place: int, said: str, literal: str) -> int | None:
    """How many characters of what is said stand at a place, before the literal; None where it does not stand there."""
    for written in _WRITTEN:
        filling = written(said)
        if text.startswith(filling, place) and text.startswith(literal, place + len(filling)):
            return len(filling)
    return None
