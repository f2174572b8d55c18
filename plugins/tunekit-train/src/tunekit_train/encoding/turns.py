"""Where each turn lies in a rendered conversation, found by rendering: never by searching the text for role markers.

A message's contents lie in *slots*. An answer begins where the messages before it, rendered with the generation prompt,
end, and else with its first slot. It ends behind the special token that follows its last slot, or where the messages
up to it, rendered alone, end. A template with `{% generation %}` marks its answers itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from . import faults, thinking
from .fences import Fences
from .script import Script

Part = Literal["thinking", "content", "call"]
Address = tuple[int, Part, int]
"""A part of a conversation: index of the message, which part, and which of its tool calls."""
WeightedSpan = tuple[int, int, float]
"""Characters [start, end) and their weight."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one part of a message stands in a text; None for an end that cannot be told. `call` numbers tool calls."""

    message: int
    part: Part
    start: int | None
    end: int | None
    call: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a message stands in a text.

    `start` is where it begins, for an answer where the model goes on from the prompt; `spans` is what its weight
    counts for; `thought` is the thinking in it; `ended` says that a special token closes it.
    """

    start: int
    spans: tuple[tuple[int, int], ...]
    thought: tuple[int, int] | None
    ended: bool

    @property
    def end(self) -> int:
        """Where its weight ends."""
        return self.spans[-1][1]


class Rendering:
    """A rendered conversation and the places of its turns, found when asked for.

    `slots` may name one part several times, where a template repeats it; `missing` are the parts that it leaves out.
    `masks` asks for the place of thinking. `spans` is kept for `supervision`.
    """

    def __init__(
        self,
        text: str,
        slots: tuple[Slot, ...],
        missing: tuple[Address, ...],
        script: Script,
        fences: Fences,
        masks: bool,
    ) -> None:
        self.text = text
        self.slots = slots
        self.missing = missing
        self.spans: dict[object, tuple[WeightedSpan, ...]] = {}
        self.script = script
        self.fences = fences
        self.masks = masks
        self._turns: dict[int, Turn | None] = {}

    def turn(self, index: int) -> Turn | None:
        """Where a message stands; None where that cannot be told."""
        if index not in self._turns:
            self._turns[index] = self._find(index)
        return self._turns[index]

    def _find(self, index: int) -> Turn | None:
        own = self._own(index)
        marked = self._marked.get(index, ())
        start, end = self._start(index, own), None
        if not marked and any(slot.part != "call" and self._repeated(slot) for slot in own):
            return None
        if not marked:
            end = self._end(index, own[-1].end if own else start)
        if start is None and marked:
            start = marked[0][0]
        if start is None or (not marked and (end is None or end < start)):
            return None
        spans = marked or ((start, end or start),)
        return Turn(start, spans, self._thought(index, start, own), self.fences.ends(self.text[start : spans[-1][1]]))

    def _own(self, index: int) -> list[Slot]:
        """The slots of one message, each part where it is written first."""
        found: dict[tuple[Part, int], Slot] = {}
        for slot in self.slots:
            if slot.message == index:
                found.setdefault((slot.part, slot.call), slot)
        return list(found.values())

    def _repeated(self, slot: Slot) -> bool:
        return sum(1 for other in self.slots if (other.message, other.part) == (slot.message, slot.part)) > 1

    def _start(self, index: int, own: list[Slot]) -> int | None:
        """Where a message begins; for an answer, behind the generation prompt where that is how the text goes on."""
        first = own[0].start if own else None
        if self.script.messages[index].role != "assistant":
            return first
        limit = len(self.text) if first is None else first
        earlier = (slot.end for slot in self.slots if slot.message < index and slot.end is not None)
        floor = max((end for end in earlier if end <= limit), default=0)
        prompt = self._rendered(index, prompt=True)
        for beginning in (prompt, thinking.without_opening(prompt)):
            if floor <= len(beginning) <= limit and beginning and self.text.startswith(beginning):
                return len(beginning)
        if first is None or own[0].part == "call":
            return None  # the template writes something in front of a call: where that begins cannot be told
        return thinking.tag_before(self.text, first) if own[0].part == "thinking" else first

    def _end(self, index: int, last: int | None) -> int | None:
        """Behind the token that closes a turn, or behind what a template without one writes there."""
        if last is not None and self.script.messages[index].tool_calls:
            return self._end_of_calls(index, last)
        if last is not None and (token := self.fences.ending.match(self.text, last)):
            return token.end()
        whole = self._rendered(index + 1)
        if not whole or not self.text.startswith(whole) or (last or 0) > len(whole):
            return last
        closing = deque(self.fences.closing.finditer(self.text, last or 0, len(whole)), maxlen=1)
        closes = closing and not self.text[closing[0].end() : len(whole)].strip()
        return closing[0].end() if closes else len(whole)

    def _end_of_calls(self, index: int, last: int) -> int | None:
        """Where a turn with tool calls ends, the last of which is named before `last`.

        That is behind a special token that the messages up to it, rendered alone, have there too: one that ends other
        answers, or the last of them. Where these are rendered otherwise, it is the first one before the next message.
        """
        whole = self._rendered(index + 1)
        shared = thinking.common(self.text, whole)
        later = (slot.start for slot in self.slots if slot.message > index and slot.start is not None)
        until = min((start for start in later if start >= last), default=len(self.text))
        found = list(self.fences.closing.finditer(self.text, last, until))
        sure = [token for token in found if token.end() <= shared]
        ends_others = next((token for token in sure or found if token.group() in self._closers), None)
        if ends_others:
            return ends_others.end()
        if last <= shared == len(whole) and (not sure or self.text[sure[-1].end() : shared].strip()):
            token = self.fences.ending.match(self.text, shared)
            return token.end() if token else shared
        closing = sure[-1] if sure else found[0] if found else None
        return closing.end() if closing else None

    @cached_property
    def _closers(self) -> set[str]:
        """The tokens that end answers without tool calls, and the end token."""
        said = [slot for slot in self.slots if slot.part == "content" and slot.end is not None]
        ends = [slot.end for slot in said if self.script.messages[slot.message].role == "assistant"]
        tokens = (self.fences.ending.match(self.text, end or 0) for end in ends)
        return {token.group().strip() for token in tokens if token} | {str(self.script.template.tokenizer.eos_token)}

    def _rendered(self, count: int, prompt: bool = False) -> str:
        """The first messages rendered alone; nothing where the template refuses them."""
        try:
            return self.script.render(count, prompt)
        except faults.Fault:
            return ""

    @cached_property
    def _marked(self) -> dict[int, tuple[tuple[int, int], ...]]:
        """What `{% generation %}` marks, by index of the assistant's message."""
        if not self.script.template.marks_answers:
            return {}
        text, marks = self.script.template.marks(self.script.turns(), self.script.tools)
        answers = [index for index, message in enumerate(self.script.messages) if message.role == "assistant"]
        if text != self.text or not marks:
            return {}
        found: dict[int, list[tuple[int, int]]] = {}
        owner: int | None = None
        for place, mark in enumerate(marks):
            owner = answers[place] if len(marks) == len(answers) else self._holder(mark, owner)
            if owner is not None:
                found.setdefault(owner, []).append(mark)
        return {index: (*spans[:-1], self._with_end(spans[-1])) for index, spans in found.items()}

    def _holder(self, mark: tuple[int, int], otherwise: int | None) -> int | None:
        """The assistant's message that has a slot in a mark."""
        for slot in self.slots:
            inside = slot.start is not None and mark[0] <= slot.start < mark[1]
            if inside and self.script.messages[slot.message].role == "assistant":
                return slot.message
        return otherwise

    def _with_end(self, span: tuple[int, int]) -> tuple[int, int]:
        """A marked span, with the end-of-turn token behind it where the mark stops short of one."""
        start, end = span
        if self.fences.ends(self.text[start:end]):
            return span
        token = self.fences.ending.match(self.text, end)
        return start, token.end() if token else end

    def _thought(self, index: int, beginning: int, own: list[Slot]) -> tuple[int, int] | None:
        """The thinking in a turn, tags and all; only where it is to be masked."""
        slot = next((slot for slot in own if slot.part == "thinking"), None)
        if not self.masks or slot is None or slot.start is None or slot.end is None:
            return None
        left, right = thinking.region(self.text, self._without_thinking(index), beginning, slot.start, slot.end)
        said = [other.start for other in own if other.part != "thinking" and other.start is not None]
        return max(left, beginning), min([right, *(start for start in said if start >= slot.end)])

    def _without_thinking(self, index: int) -> str | None:
        """The text without the thinking of one message; None where the template refuses that."""
        messages = list(self.script.messages)
        messages[index] = replace(messages[index], thinking=None)
        try:
            return replace(self.script, messages=tuple(messages)).render()
        except faults.Fault:
            return None


class Fitted:
    """A rendering whose slots hold other texts: every place is that of the rendering, moved by what they are longer."""

    __slots__ = ("_ends", "_shifts", "rendering", "text")

    def __init__(self, rendering: Rendering, text: str, ends: list[int], shifts: list[int]) -> None:
        self.rendering = rendering
        self.text = text
        self._ends = ends
        self._shifts = shifts

    def place(self, place: int) -> int:
        """A place of the rendering in this text."""
        return place + self._shifts[bisect_right(self._ends, place)]

    def turn(self, index: int) -> Turn | None:
        """Where a message stands; None where that cannot be told."""
        turn = self.rendering.turn(index)
        if turn is None:
            return None
        place = self.place
        thought = None if turn.thought is None else (place(turn.thought[0]), place(turn.thought[1]))
        return Turn(place(turn.start), tuple((place(a), place(b)) for a, b in turn.spans), thought, turn.ended)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots in this text."""
        return tuple(
            replace(slot, start=self._moved(slot.start), end=self._moved(slot.end)) for slot in self.rendering.slots
        )

    def _moved(self, place: int | None) -> int | None:
        return None if place is None else self.place(place)


Placed = Rendering | Fitted
