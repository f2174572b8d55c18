"""The encoder: examples in, items of token sequences out, and every row accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from tunekit.values import Account, Example, Item, TokenSequence, ToolFormat

from . import faults
from .cutting import blocks
from .fingerprint import fingerprint
from .fitting import Fit, Strip
from .pictures import image_reader
from .rules import Rules
from .tokens import Codec, Ids, Tokens
from .writer import Share, Writer

BATCH = 512
"""Examples encoded at once by `encode_all`; the tokenizer works on them in parallel."""


class Encoder:
    """Turns examples into items, by one tokenizer and its chat template, one set of rules, and a tool format.

    Special tokens inside a message stay plain text: the ids are those of
    `tokenizer.apply_chat_template(messages, sanitize_control_tokens=True)`.
    """

    def __init__(self, tokenizer: Any, rules: Rules, tool_format: ToolFormat | None = None) -> None:
        self.tokenizer = tokenizer
        self.rules = rules
        self.tool_format = tool_format
        self._codec = Codec(tokenizer)
        self._writers: dict[bool, Writer] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Changes with tokenizer, chat template, special tokens, rules, tool format and the versions involved."""
        return fingerprint(self.tokenizer, self.rules, self.tool_format)

    @property
    def reads_images(self) -> bool:
        """Whether sequences may come with images, which are read again for each batch."""
        return image_reader(self.tokenizer) is not None

    def encode_all(self, examples: Iterable[Example], account: Account) -> Iterator[Item]:
        """The items of examples one after the other, as they are asked for; see `encode`.

        One batch is tokenised, without holding up Python, while the next one is read and the one before is given.
        """
        remaining = iter(examples)
        with ThreadPoolExecutor(1) as tokenising:
            waiting: list[tuple[_Work, Future[_Tokenised]]] = []
            while batch := list(islice(remaining, BATCH)):
                work = self._begin(batch)
                waiting.append((work, tokenising.submit(self._tokenise, work)))
                if len(waiting) > 1:
                    yield from self._given(*waiting.pop(0), account)
            for work, tokens in waiting:
                yield from self._given(work, tokens, account)

    def encode(self, examples: Sequence[Example], account: Account) -> list[list[Item]]:
        """The items of each example; none where it is left out or dropped, which `account` then says.

        Raises DataError for what is wrong with all rows: conversations and no chat template, or a tokenizer that does
        not tell which characters a token covers.
        """
        work = self._begin(examples)
        return self._finish(work, self._tokenise(work), account)

    def _begin(self, examples: Sequence[Example]) -> _Work:
        """What comes before the tokens."""
        documents = [place for place, example in enumerate(examples) if example.text is not None]
        work = _Work(examples, documents)
        for with_tools in (False, True):
            chosen = [
                place
                for place, example in enumerate(examples)
                if example.text is None and bool(example.tools) is with_tools
            ]
            if chosen:
                work.shares.append(self._writer(with_tools).begin(chosen, [examples[place] for place in chosen]))
        return work

    def _tokenise(self, work: _Work) -> _Tokenised:
        texts = [work.examples[place].text or "" for place in work.documents]
        return self._codec.documents(texts), [self._codec.encode(share.texts) for share in work.shares]

    def _finish(self, work: _Work, tokenised: _Tokenised, account: Account) -> list[list[Item]]:
        """What comes after the tokens."""
        documents, shares = tokenised
        fits = {place: _document(ids, self.rules) for place, ids in zip(work.documents, documents, strict=True)}
        for share, tokens in zip(work.shares, shares, strict=True):
            examples = [work.examples[place] for place in share.places]
            fits.update(zip(share.places, share.writer.finish(share, examples, tokens), strict=True))
        return [_settle(example, fits[place], account) for place, example in enumerate(work.examples)]

    def _given(self, work: _Work, tokens: Future[_Tokenised], account: Account) -> Iterator[Item]:
        for items in self._finish(work, tokens.result(), account):
            yield from items

    def _writer(self, with_tools: bool) -> Writer:
        if with_tools not in self._writers:
            self._writers[with_tools] = Writer.of(self._codec, self.rules, self.tool_format, with_tools)
        return self._writers[with_tools]


@dataclass(slots=True)
class _Work:
    """A batch before its texts are tokenised: the places of its documents, and the shares of the writers."""

    examples: Sequence[Example]
    documents: list[int]
    shares: list[Share] = field(default_factory=list)


_Tokenised = tuple[list[Ids], list[list[Tokens]]]


def _document(ids: Ids, rules: Rules) -> Fit | faults.Fault:
    """A document is trained on every token but the first."""
    limit = rules.max_length
    if len(ids) < 2:
        return faults.all_masked()
    if limit is None or len(ids) <= limit:
        return Fit([Strip(ids, _ones(ids), len(ids))])
    if rules.too_long == "drop":
        return Fit(dropped=True, whole=(len(ids),))
    if limit < 2:
        return faults.cut_away(limit, len(ids))
    if rules.too_long == "split":
        strips = [Strip(block, _ones(block), len(block)) for block in blocks(ids, limit)]
        return Fit(strips, split=True, whole=(len(ids),))
    return Fit([Strip(ids[:limit].copy(), _ones(ids[:limit]), len(ids))])


def _ones(ids: Ids) -> Any:
    weights = np.ones(len(ids), dtype=np.float32)
    weights[:1] = 0
    return weights


def _settle(example: Example, fit: Fit | faults.Fault, account: Account) -> list[Item]:
    """Note in the account what became of an example, and give its items."""
    if not example.again:
        _note_row(example, fit, account)
    if isinstance(fit, faults.Fault) or fit.dropped:
        return []
    source = account.source(example.source)
    source.sequences += len(fit.strips)
    source.tokens_cut += fit.unused
    for strip in fit.strips:
        source.tokens += len(strip.ids)
        source.supervised += int(np.count_nonzero(strip.weights))
        source.tokens_cut += strip.cut
    sequences = [_sequence(strip, example) for strip in fit.strips]
    if example.kind == "preference":
        return [Item(tuple(sequences), margin=example.margin)]
    return [Item((sequence,), label=example.label) for sequence in sequences]


def _note_row(example: Example, fit: Fit | faults.Fault, account: Account) -> None:
    if isinstance(fit, faults.Fault):
        account.leave_out(example.source, example.where, fit.reason, fit.remedy, example.optional)
        return
    source = account.source(example.source)
    source.lengths.update(fit.lengths)
    for happened, places in ((fit.dropped, source.dropped), (fit.split, source.split), (fit.cut, source.cut)):
        if happened:
            places.add(example.where)


def _sequence(strip: Strip, example: Example) -> TokenSequence:
    ids: Any = strip.ids
    weights: Any = strip.weights
    return TokenSequence(ids, weights, example.row, example.where, strip.cut, strip.inputs)
