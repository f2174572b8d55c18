"""Pages that fit the length limit: as they are, cut, or split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tunekit.values import Inputs

from . import faults
from .cutting import Indices, Span, end_within, shorten
from .exchanges import Exchanges
from .pages import Page, Pages
from .tokens import Ids, Weights


@dataclass(frozen=True, slots=True)
class Strip:
    """Tokens with their weights, how many there were before any cut, and what the model is given besides."""

    ids: Ids
    weights: Weights
    length: int
    inputs: Inputs | None = None

    @property
    def cut(self) -> int:
        """Tokens that are gone."""
        return self.length - len(self.ids)


@dataclass(slots=True)
class Fit:
    """What became of an example: its strips, whether it was split, and tokens of parts that train nothing.

    `whole` counts the tokens of each sequence before any cut where the strips do not tell: it was split, or dropped.
    """

    strips: list[Strip] = field(default_factory=list)
    split: bool = False
    dropped: bool = False
    unused: int = 0
    whole: tuple[int, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence before any cut."""
        return self.whole or tuple(strip.length for strip in self.strips)

    @property
    def cut(self) -> bool:
        """Whether anything is gone."""
        return self.unused > 0 or any(strip.cut for strip in self.strips)


class Fitter:
    """Cuts and splits pages; see `cutting` for the policy."""

    def __init__(self, pages: Pages, limit: int) -> None:
        self.pages = pages
        self.limit = limit

    def cut(self, page: Page) -> Strip:
        """Shorten a page. Raises Fault where no trained token is left."""
        length = len(page)
        (page,) = self._without_oldest([page])
        index = min((index for index in range(len(page.talk.messages)) if page.talk.weight(index)), default=None)
        turn = None if page.talk.rest or index is None else page.placed.turn(index)
        kept: Indices = np.arange(len(page))
        if turn is not None and index is not None and (end := page.tokens.last(turn.end)) > self.limit:
            start = page.tokens.first(turn.start)
            kept = self._shortened(page, index, start, end - start)
        return self._strip(page, kept, length)

    def split(self, page: Page) -> Fit:
        """Part a page at its exchanges, the system turn in each part; one that alone is too long is cut."""
        exchanges = Exchanges.of(page.talk.messages)
        places = [*self._places(page, exchanges), len(page)]
        fit, first = Fit(whole=(len(page),)), 0
        while first < len(exchanges.groups):
            room = self.limit - places[0] + places[first]
            # A place lies behind its header, so one exchange more than the places tell may fit.
            last = min(len(exchanges.groups), max(first, sum(1 for place in places[1:] if place <= room)) + 1)
            part = self._part(page, exchanges, first, last)
            while len(part) > self.limit and last > first + 1:
                last -= 1
                part = self._part(page, exchanges, first, last)
            first = last
            if not part.weights.any():
                fit.unused += len(part)
                continue
            fit.strips.append(self._strip(part, None, len(part)) if len(part) <= self.limit else self.cut(part))
        fit.split = len(fit.strips) > 1
        return fit

    def cut_pair(self, pair: Sequence[Page], shared: int) -> list[Strip]:
        """Shorten a pair, whose prompt of `shared` tokens stays the same for both. Raises Fault."""
        lengths = [len(page) for page in pair]
        shortened = self._without_oldest(pair)
        if shortened is not pair:
            pair, shared = share_prompt(self.pages, shortened)
        answer = max(len(page) for page in pair) - shared
        if answer + shared <= self.limit:
            return [self._strip(page, None, length) for page, length in zip(pair, lengths, strict=True)]
        kept = self._shortened(pair[0], pair[0].talk.prompt, shared, answer)
        prompt = kept[kept < shared]
        return [
            self._strip(page, np.concatenate([prompt, np.arange(shared, len(page))]), length)
            for page, length in zip(pair, lengths, strict=True)
        ]

    def _shortened(self, page: Page, index: int, start: int, answer: int) -> Indices:
        """The tokens that stay when the prompt of message `index`, which begins with token `start`, is shortened."""
        contents = list(_contents(page, index, start))
        prompt = shorten(start, contents, answer, self.limit, page.tokens.boundaries)
        return np.concatenate([prompt, np.arange(start, len(page))])

    def _strip(self, page: Page, kept: Indices | None, length: int) -> Strip:
        if kept is None:
            return Strip(page.tokens.ids, page.weights, length)
        ids, weights = page.tokens.ids[kept], page.weights[kept]
        end = end_within(len(kept), self.limit, weights, page.tokens.boundaries[kept])
        if not weights[:end].any():
            raise faults.cut_away(self.limit, length)
        return Strip(ids[:end].copy(), weights[:end].copy(), length)

    def _without_oldest(self, pages: Sequence[Page]) -> Sequence[Page]:
        """The pages without as many of their oldest exchanges as needed; what is trained stays."""
        talk = pages[0].talk
        exchanges = Exchanges.of(talk.messages)
        trained = min((index for index in range(len(talk.messages)) if talk.weight(index)), default=0)
        final = exchanges.holding(min(trained, talk.prompt) if len(pages) > 1 else trained)
        excess = max(map(len, pages)) - self.limit
        if excess <= 0:
            return pages
        places = self._places(pages[0], exchanges)
        first = next((group for group in range(1, final) if places[group] - places[0] >= excess), final)
        for group in range(first, final + 1):
            if group == 0:
                break
            shorter = [self._part(page, Exchanges.of(page.talk.messages), group, None) for page in pages]
            if group == final or max(map(len, shorter)) <= self.limit:
                return shorter
        return pages

    def _part(self, page: Page, exchanges: Exchanges, first: int, last: int | None) -> Page:
        end = len(exchanges.groups) if last is None else last
        if (first, end) == (0, len(exchanges.groups)):
            return page
        return self.pages.make(page.talk.part(exchanges.kept(first, end)))

    def _places(self, page: Page, exchanges: Exchanges) -> list[int]:
        """About where each exchange begins, in tokens: the first content that is known."""
        starts: dict[int, int] = {}
        for slot in page.placed.slots:
            if slot.start is not None:
                starts.setdefault(slot.message, slot.start)
        found, place = [], 0
        for group in exchanges.groups:
            known = [starts[index] for index in group if index in starts]
            place = max(place, page.tokens.first(known[0])) if known else place
            found.append(place)
        return found


def share_prompt(pages: Pages, pair: Sequence[Page]) -> tuple[Sequence[Page], int]:
    """A pair whose pages begin with the very same tokens of their prompt, and how many these are. Raises Fault."""
    index = pair[0].talk.prompt
    turns = [page.placed.turn(index) for page in pair]
    if turns[0] is None or turns[1] is None:
        raise faults.rewritten(index)
    place = turns[0].start
    if turns[1].start != place or pair[0].placed.text[:place] != pair[1].placed.text[:place]:
        raise faults.prompts_differ()
    if not all(page.tokens.first(place) == page.tokens.last(place) for page in pair) or not _same(pair, place):
        pair = [pages.again(page, place) for page in pair]
    shared = pair[0].tokens.last(place)
    if not _same(pair, place):
        raise faults.prompts_differ()
    for page in pair:
        page.weights[:shared] = 0
    return pair, shared


def _same(pair: Sequence[Page], place: int) -> bool:
    chosen, rejected = (page.tokens.ids[: page.tokens.last(place)] for page in pair)
    return np.array_equal(chosen, rejected)


def _contents(page: Page, before: int, start: int) -> list[Span]:
    """The tokens of what the messages before one say, that lie before token `start`: in order, and apart."""
    found: list[Span] = []
    for slot in page.placed.slots:
        if slot.message < before and slot.part != "call" and slot.start is not None and slot.end is not None:
            span = (page.tokens.last(slot.start), page.tokens.first(slot.end))
            if span[0] < span[1] <= start:
                found.append(span)
    apart: list[Span] = []
    for span in sorted(found):
        if not apart or span[0] >= apart[-1][1]:
            apart.append(span)
    return apart
