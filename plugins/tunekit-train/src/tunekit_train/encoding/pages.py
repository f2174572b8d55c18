"""Talks as tokens with a weight on each: rendered, placed and tokenised, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import faults
from .fences import fenced
from .frames import Frames
from .script import Script
from .supervision import supervise
from .talks import Talk
from .tokens import Codec, Tokens, Weights
from .turns import Placed, WeightedSpan


@dataclass(slots=True)
class Page:
    """A talk as tokens; `spans` are the characters of its text that weigh otherwise than the rest."""

    talk: Talk
    placed: Placed
    spans: list[WeightedSpan]
    tokens: Tokens
    weights: Weights

    def __len__(self) -> int:
        return len(self.tokens.ids)


@dataclass(slots=True)
class _Draft:
    talk: Talk
    placed: Placed
    spans: list[WeightedSpan]


class Pages:
    """Makes pages of talks."""

    def __init__(self, frames: Frames, codec: Codec) -> None:
        self.frames = frames
        self.codec = codec

    def make(self, talk: Talk) -> Page:
        """Make one page. Raises Fault."""
        (page,) = self.make_all([talk])
        if isinstance(page, faults.Fault):
            raise page
        return page

    def make_all(self, talks: Sequence[Talk]) -> list[Page | faults.Fault]:
        """A page for each talk, or why there is none."""
        drafts = self._drafts(talks)
        found: list[Page | faults.Fault | None] = [
            draft if isinstance(draft, faults.Fault) else None for draft in drafts
        ]
        waiting: list[tuple[int, _Draft]] = []
        for place, draft in enumerate(drafts):
            if isinstance(draft, _Draft):
                try:
                    if fenced(draft.placed.text):
                        found[place] = self._page(draft, self.codec.encode_pieces(draft.placed.text))
                    else:
                        waiting.append((place, draft))
                except faults.Fault as fault:
                    found[place] = fault
        encoded = self.codec.encode([draft.placed.text for _, draft in waiting])
        for (place, draft), tokens in zip(waiting, encoded, strict=True):
            try:
                found[place] = self._page(draft, tokens)
            except faults.Fault as fault:
                found[place] = fault
        return [page for page in found if page is not None]

    def again(self, page: Page, place: int) -> Page:
        """The page tokenised so that no token reaches across a place of its text. Raises Fault."""
        draft = _Draft(page.talk, page.placed, page.spans)
        return self._page(draft, self.codec.encode_pieces(page.placed.text, (place,)))

    def _page(self, draft: _Draft, tokens: Tokens) -> Page:
        begin = self.codec.tokenizer.bos_token_id
        if begin is not None and len(tokens) > 1 and tokens.ids[0] == begin == tokens.ids[1]:
            raise faults.doubled_start(self.codec.tokenizer.bos_token)
        weights = np.full(len(tokens), draft.talk.rest, dtype=np.float32)
        for start, end, weight in draft.spans:
            weights[tokens.first(start) : tokens.last(end)] = weight
        weights[:1] = 0
        return Page(draft.talk, draft.placed, draft.spans, tokens, weights)

    def _drafts(self, talks: Sequence[Talk]) -> list[_Draft | faults.Fault]:
        scripts = [self.frames.script(talk) for talk in talks]
        texts = iter(self._rendered([script for script in scripts if _is_plain(script)]))
        return [
            self._draft(talk, script, next(texts) if _is_plain(script) else None)
            for talk, script in zip(talks, scripts, strict=True)
        ]

    def _draft(self, talk: Talk, script: Script, text: str | None) -> _Draft | faults.Fault:
        try:
            if text is None:
                script, text = self.frames.render(script)
            placed = self.frames.place(script, text)
            return _Draft(talk, placed, supervise(talk, placed))
        except faults.Fault as fault:
            return fault

    def _rendered(self, scripts: list[Script]) -> list[str | None]:
        """Render at once; None for each where the template refuses one of them, to be told apart one by one."""
        if not scripts:
            return []
        try:
            return list(self.frames.template.render_all([script.turns() for script in scripts]))
        except faults.Fault:
            return [None] * len(scripts)


def _is_plain(script: Script) -> bool:
    return script.tools is None and not any(message.tool_calls for message in script.messages)
