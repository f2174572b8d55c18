"""Prompts as data, for stages that learn from their own answers: prepared once, every row accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tunekit.values import (
    Account,
    Example,
    Examples,
    Item,
    Kind,
    Message,
    Mixing,
    Sample,
    StageContext,
    TokenSequence,
)

from .items import IndexedItems, Indices

if TYPE_CHECKING:
    from .encoding import Rules
    from .encoding.fitting import Fit
    from .encoding.tokens import Ids

PROMPT_KINDS: frozenset[Kind] = frozenset({"conversation", "preference", "labelled", "text"})
"""Every kind of example has a prompt."""


@dataclass(frozen=True)
class Asked:
    """A prompt as tokens, int32 [seq], with what a reward may want to know of the row that it comes from."""

    ids: Ids
    messages: tuple[Message, ...]
    reference: str | None
    columns: Mapping[str, Any]
    row: int
    where: str
    source: str
    cut: int = 0

    def sample(self, answer: str, finish: Literal["end", "length"]) -> Sample:
        """The prompt with an answer to it."""
        told = (self.reference, self.columns, self.row, self.where, self.source)
        return Sample(self.messages, answer, finish, *told)

    def item(self) -> Item:
        """The prompt as an item in which nothing is trained yet."""
        weights = np.zeros(len(self.ids), np.float32)
        sequence = TokenSequence(self.ids, weights, self.row, self.where, self.cut)  # type: ignore[arg-type]
        return Item((sequence,))


class Prompts(IndexedItems):
    """The prompts of a stage, in memory, in the order of the data."""

    def __init__(self, asked: Iterable[Asked], account: Account | None = None, mixing: Mixing | None = None) -> None:
        self._asked = list(asked)
        self.account = account or Account()
        self.mixing = mixing or Mixing()

    def __len__(self) -> int:
        return len(self._asked)

    def take(self, index: int) -> Item:
        """The prompt of this number as an item."""
        return self._asked[index].item()

    def asked(self, index: int) -> Asked:
        """The prompt of this number."""
        return self._asked[index]

    @cached_property
    def lengths(self) -> Indices:
        """Tokens of each prompt."""
        return np.fromiter((len(each.ids) for each in self._asked), np.int64, len(self))

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for each in self._asked:
            digest.update(f"{len(each.ids)} {each.reference!r} {sorted(map(str, each.columns.items()))!r}".encode())
            digest.update(np.asarray(each.ids, np.int32).tobytes())
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """What is asked, and what rewards may look at."""
        return self._digest


def prepare_prompts(
    data: Examples, tokenizer: Any, rules: Rules, context: StageContext, kinds: frozenset[Kind] = PROMPT_KINDS
) -> Prompts:
    """Write the prompts of all examples; `rules.max_length` is the most tokens of one.

    They are kept in memory: answers take so long that no run sees more of them than that. Rows without a prompt are
    noted in the account. Raises DataError where the data is of a kind that the stage does not take, and where
    conversations meet a tokenizer without a chat template.
    """
    from .preparing import Fitting, tool_format

    fit = Fitting(kinds, context.name)
    return Prompts(_written(fit(data), tokenizer, rules, data.account, tool_format(context)), data.account, data.mixing)


def _written(
    examples: Iterable[Example], tokenizer: Any, rules: Rules, account: Account, tool_format: Any
) -> Iterator[Asked]:
    from .encoding import faults
    from .encoding.fitting import Fit
    from .encoding.prompting import Prompter

    prompter = Prompter(tokenizer, rules, tool_format)
    for example in examples:
        try:
            written = prompter.write(example)
        except faults.Fault as fault:
            if not example.again:
                account.leave_out(example.source, example.where, fault.reason, fault.remedy, example.optional)
            continue
        _note(example, written if isinstance(written, Fit) else written.fit, account)
        if not isinstance(written, Fit):
            told = (example.columns, example.row, example.where, example.source)
            yield Asked(written.ids, written.messages, written.reference, *told, written.length - len(written.ids))


def _note(example: Example, fit: Fit, account: Account) -> None:
    """Note what became of a row."""
    source = account.source(example.source)
    if not example.again:
        source.lengths.update(fit.lengths)
        for happened, places in ((fit.dropped, source.dropped), (fit.cut, source.cut)):
            if happened:
                places.add(example.where)
    source.sequences += len(fit.strips)
    for strip in fit.strips:
        source.tokens += len(strip.ids)
        source.tokens_cut += strip.cut
