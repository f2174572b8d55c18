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
class Draft:
    """A talk rendered, and its spans; `fenced` where its text is to be tokenised piece by piece."""

    talk: Talk
    placed: Placed
    spans: list[WeightedSpan]
    fenced: bool

    @property
    def text(self) -> str:
        """The rendered text."""
        return self.placed.text


@dataclass(slots=True)
class Page:
    """A draft as tokens, with a weight on each."""

    draft: Draft
    tokens: Tokens
    weights: Weights

    def __len__(self) -> int:
        return len(self.tokens.ids)

    @property
    def talk(self) -> Talk:
        """What is said on it."""
        return self.draft.talk

    @property
    def placed(self) -> Placed:
        """Where that stands in the text."""
        return self.draft.placed


class Pages:
    """Makes pages of talks: drafts first, whose texts are tokenised many at once, and pages of both."""

    def __init__(self, frames: Frames, codec: Codec) -> None:
        self.frames = frames
        self.codec = codec

    def make(self, talk: Talk) -> Page:
        """Make one page. Raises Fault."""
        (draft,) = self.draft([talk])
        if isinstance(draft, faults.Fault):
            raise draft
        return self.page(draft, None if draft.fenced else self.codec.encode([draft.text])[0])

    def draft(self, talks: Sequence[Talk]) -> list[Draft | faults.Fault]:
        """A draft of each talk, or why there is none."""
        scripts = [self.frames.script(talk) for talk in talks]
        texts = iter(self._rendered([script for script in scripts if _is_plain(script)]))
        return [
            self._draft(talk, script, next(texts) if _is_plain(script) else None)
            for talk, script in zip(talks, scripts, strict=True)
        ]

    def page(self, draft: Draft, tokens: Tokens | None, breaks: tuple[int, ...] = ()) -> Page:
        """Weigh the tokens of a draft, or those of its pieces, which end at `breaks` too. Raises Fault."""
        tokens = self.codec.encode_pieces(draft.text, breaks) if tokens is None else tokens
        begin = self.codec.tokenizer.bos_token_id
        if begin is not None and len(tokens) > 1 and tokens.ids[0] == begin == tokens.ids[1]:
            raise faults.doubled_start(self.codec.tokenizer.bos_token)
        weights = np.full(len(tokens), draft.talk.rest, dtype=np.float32)
        for start, end, weight in draft.spans:
            weights[tokens.first(start) : tokens.last(end)] = weight
        weights[:1] = 0
        return Page(draft, tokens, weights)

    def again(self, page: Page, place: int) -> Page:
        """The page tokenised so that no token reaches across a place of its text. Raises Fault."""
        return self.page(page.draft, None, (place,))

    def _draft(self, talk: Talk, script: Script, text: str | None) -> Draft | faults.Fault:
        try:
            if text is None:
                script, text = self.frames.render(script)
            placed = self.frames.place(script, text)
            return Draft(talk, placed, supervise(talk, placed), fenced(text))
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
