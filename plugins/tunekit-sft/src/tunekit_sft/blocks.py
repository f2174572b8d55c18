"""Documents laid end to end and cut into blocks of so many tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tunekit.values import Account, Example, Item, TokenSequence
from tunekit_train.streaming import CHUNK, ItemEncoder


@dataclass
class BlockEncoder:
    """Cuts the documents that another encoder has made where blocks end, and puts blocks together.

    A block has `size` tokens, counted from the first document on. Each document in it is a sequence of its own, or with
    `cross_documents` all of it is one sequence. Every token has a loss but the first of each sequence. `encode` goes on
    behind `filled` tokens of a block; `filled_before` is what that was when it was last called.
    """

    documents: ItemEncoder
    size: int
    cross_documents: bool = False
    filled: int = 0
    filled_before: int = 0

    @property
    def fingerprint(self) -> str:
        """Changes with everything that decides what the blocks are."""
        return f"{self.documents.fingerprint}, blocks of {self.size}, crossing: {self.cross_documents}"

    def encode(self, examples: Sequence[Example], account: Account) -> list[list[Item]]:
        """The documents, each an item whose sequences are the parts that lie in one block."""
        self.filled_before = self.filled
        made = self.documents.encode(examples, account)
        return [
            [self._cut(item, example, account) for item in items] for example, items in zip(examples, made, strict=True)
        ]

    def encode_all(self, examples: Iterable[Example], account: Account) -> Iterator[Item]:
        """The blocks. The last holds the tokens that are left."""
        cutter, joiner = replace(self, filled=0), self.joiner()
        remaining = iter(examples)
        while chunk := list(islice(remaining, CHUNK)):
            for document in (item for items in cutter.encode(chunk, account) for item in items):
                yield from filter(None, map(joiner.add, document.sequences))
        if joiner.parts:
            yield joiner.join()

    def joiner(self) -> Joiner:
        """What puts blocks together."""
        return Joiner(self.size, self.cross_documents)

    def _cut(self, item: Item, example: Example, account: Account) -> Item:
        """Cut a document where blocks end, and correct what the encoder of documents noted of it."""
        (document,) = item.sequences
        first, count = self.size - self.filled, len(document)
        parts = np.split(np.asarray(document.ids), range(first, count, self.size))
        begins = [at > 0 or self.filled == 0 for at in range(len(parts))]  # a block begins with this part
        heads = begins if self.cross_documents else [True] * len(parts)
        self.filled = (self.filled + count) % self.size
        source = account.source(example.source)
        source.joined = source.joined or not heads[0]
        if len(parts) > 1:
            source.split.add(document.where)
        source.sequences += sum(heads) - 1
        source.supervised += 1 - sum(heads)
        return Item(tuple(_part(ids, head, document) for ids, head in zip(parts, heads, strict=True)))


class Joiner:
    """Puts the parts of documents together, to blocks of `size` tokens."""

    def __init__(self, size: int, cross_documents: bool) -> None:
        self.size, self.cross_documents = size, cross_documents
        self.parts: list[TokenSequence] = []
        self._filled = 0

    def add(self, part: TokenSequence) -> Item | None:
        """Take the next part; returns the block that it completes."""
        self.parts.append(part)
        self._filled += len(part)
        assert self._filled <= self.size, "a part lies in one block"
        return self.join() if self._filled == self.size else None

    def join(self) -> Item:
        """Make a block of what there is."""
        parts, self.parts, self._filled = self.parts, [], 0
        return Item((_joined(parts),) if self.cross_documents else tuple(parts))


def _part(ids: NDArray[np.int32], head: bool, document: TokenSequence) -> TokenSequence:
    """A part of a document; the first token of a sequence is no target."""
    weights = np.ones(len(ids), dtype=np.float32)
    weights[:1] = not head
    return TokenSequence(ids, weights, document.row, document.where)  # type: ignore[arg-type]


def _joined(parts: list[TokenSequence]) -> TokenSequence:
    """All parts of a block as one sequence, which leads back to the first document in it."""
    first = parts[0]
    where = first.where if len(parts) == 1 else f"{first.where} and what follows it"
    ids, weights = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "weights"))
    return TokenSequence(ids, weights, first.row, where)
