"""What becomes of conversations, pairs and labelled answers: drafted, tokenised, and made to fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from tunekit.errors import DataError
from tunekit.values import Example, Image, ToolFormat

from . import faults
from .fences import Fences
from .fitting import Fit, Fitter, Strip, share_prompt
from .frames import Frames
from .pages import Draft, Page, Pages
from .pictures import image_reader, images_of, pictured
from .rules import Rules
from .talks import Talk, Talks
from .template import Template
from .tokens import Codec, Tokens

Made = TypeVar("Made")


@dataclass(slots=True)
class Share:
    """The conversations of a batch that one writer encodes: `places` of their examples, and drafts of their talks."""

    writer: Writer
    places: list[int]
    talks: list[list[Talk] | faults.Fault]
    drafts: list[Draft | faults.Fault]

    @property
    def texts(self) -> list[str]:
        """What is to be tokenised as it is."""
        return [draft.text for draft in self.drafts if isinstance(draft, Draft) and not draft.fenced]


@dataclass(frozen=True)
class Writer:
    """What encodes conversations, with the template that tools ask for or the one for those without."""

    rules: Rules
    talks: Talks
    pages: Pages

    @classmethod
    def of(cls, codec: Codec, rules: Rules, tool_format: ToolFormat | None, with_tools: bool) -> Writer:
        """Make the writer for rows with tools, or for those without. Raises DataError where there can be none."""
        tokenizer = codec.tokenizer
        if not tokenizer.chat_template:
            raise DataError([faults.no_template()])
        if not tokenizer.is_fast:
            raise DataError([faults.no_offsets(tokenizer)])
        template = Template(tokenizer, with_tools)
        fences = Fences(tokenizer, template.facts.literals)
        reader = image_reader(tokenizer)
        talks = Talks(rules, fences, tool_format, template.writes_tools, reader.marker if reader else None)
        masks = rules.thinking == "mask"
        return cls(rules, talks, Pages(Frames(template, fences, masks), codec))

    def begin(self, places: list[int], examples: Sequence[Example]) -> Share:
        """Draft the talks of examples."""
        talks = [_attempt(self.talks.make, example) for example in examples]
        drafts = self.pages.draft([talk for made in talks if isinstance(made, list) for talk in made])
        return Share(self, places, talks, drafts)

    def finish(self, share: Share, examples: Sequence[Example], tokens: list[Tokens]) -> list[Fit | faults.Fault]:
        """What becomes of each example."""
        drafts, remaining = iter(share.drafts), iter(tokens)
        found: list[Fit | faults.Fault] = []
        for example, talks in zip(examples, share.talks, strict=True):
            if isinstance(talks, faults.Fault):
                found.append(talks)
                continue
            own = list(islice(drafts, len(talks)))
            plain = [isinstance(draft, Draft) and not draft.fenced for draft in own]
            given = [next(remaining) if asked else None for asked in plain]
            found.append(_attempt(self._fit, example, own, given))
        return found

    def _fit(self, example: Example, drafts: list[Draft | faults.Fault], tokens: list[Tokens | None]) -> Fit:
        pages = []
        for draft, found in zip(drafts, tokens, strict=True):
            if isinstance(draft, faults.Fault):
                raise draft
            pages.append(self.pages.page(draft, found))
        return self._pair(pages) if len(pages) > 1 else self._conversation(example, pages[0])

    def _conversation(self, example: Example, page: Page) -> Fit:
        if not page.weights.any():
            raise faults.all_masked()
        limit = self.rules.max_length
        if images := images_of(page.talk.messages):
            return self._with_images(page, images)
        if limit is None or len(page) <= limit:
            return Fit([Strip(page.tokens.ids, page.weights, len(page))])
        if self.rules.too_long == "drop":
            return Fit(dropped=True, whole=(len(page),))
        fitter = Fitter(self.pages, limit)
        if self.rules.too_long == "split" and example.label is None:
            return fitter.split(page)
        return Fit([fitter.cut(page)])

    def _with_images(self, page: Page, images: tuple[Image, ...]) -> Fit:
        """A conversation with the tokens of its images, which is taken whole or not at all."""
        ids, weights, inputs = pictured(self.pages.codec.tokenizer, page.tokens.ids, page.weights, images)
        limit = self.rules.max_length
        if limit is None or len(ids) <= limit:
            return Fit([Strip(ids, weights, len(ids), inputs)])
        if self.rules.too_long == "drop":
            return Fit(dropped=True, whole=(len(ids),))
        raise faults.images_too_long(limit, len(ids))

    def _pair(self, pages: list[Page]) -> Fit:
        if any(images_of(page.talk.messages) for page in pages):
            raise faults.images_in_pair()
        pair, shared = share_prompt(self.pages, pages)
        if not all(page.weights.any() for page in pair):
            raise faults.all_masked()
        if np.array_equal(pair[0].tokens.ids, pair[1].tokens.ids):
            raise faults.same_answers(shortened=False)
        limit = self.rules.max_length
        if limit is None or max(map(len, pair)) <= limit:
            return Fit([Strip(page.tokens.ids, page.weights, len(page)) for page in pair])
        if self.rules.too_long == "drop":
            return Fit(dropped=True, whole=tuple(map(len, pair)))
        strips = Fitter(self.pages, limit).cut_pair(pair, shared)
        if np.array_equal(strips[0].ids, strips[1].ids):
            raise faults.same_answers(shortened=True)
        return Fit(strips)


def _attempt(make: Callable[..., Made], *given: Any) -> Made | faults.Fault:
    try:
        return make(*given)
    except faults.Fault as fault:
        return fault
