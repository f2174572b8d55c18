"""Blocks of documents that are read while they are trained on, with an exact way back to any of them."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from tunekit.values import Item
from tunekit_train.streaming import Position, StreamedItems

from .blocks import BlockEncoder

NOTHING_READ = pickle.dumps({})
"""The accounts of the sources before the first example."""


@dataclass(frozen=True, slots=True)
class BlockPosition(Position):
    """A place between two blocks: behind so many `parts` of the document that follows a place between documents.

    The chunk of examples that the latter lies in begins behind `filled` tokens of a block.
    """

    filled: int = 0
    parts: int = 0

    @classmethod
    def of(cls, position: Position, filled: int = 0, parts: int = 0) -> BlockPosition:
        """The same place between documents; one that is a block's already stays as it is."""
        if isinstance(position, cls):
            return position
        account = position.account
        if account is None and position == Position():
            account = NOTHING_READ  # unlike a place behind a document, the beginning comes without
        return cls(position.passed, position.examples, position.items, account, position.batches, filled, parts)


class StreamedBlocks(StreamedItems):
    """The blocks of documents that are read anew each time.

    While it is trained on, a block goes on with the first document of the next pass where the last one ends.
    """

    def __init__(self, documents: StreamedItems, encoder: BlockEncoder) -> None:
        super().__init__(documents.data, encoder, documents.fit, documents.seed, documents.fingerprint)
        self.blocks = encoder

    def after(self, position: Position) -> Generator[tuple[Item, Position], None, None]:
        """The blocks behind a position, pass after pass without an end, each with the position behind it."""
        before = BlockPosition.of(position)
        cutter, joiner, done = replace(self.blocks, filled=before.filled), self.blocks.joiner(), before.parts
        documents = StreamedItems(self.data, cutter, self.fit, self.seed, self.fingerprint)
        with closing(documents.after(before)) as remaining:
            for document, behind in remaining:
                for parts, part in enumerate(document.sequences[done:], done + 1):
                    block = joiner.add(part)
                    if block is not None:
                        yield block, replace(before, parts=parts)
                before, done = BlockPosition.of(behind, cutter.filled_before), 0

    def state(self, position: Position) -> dict[str, Any]:
        """What a checkpoint keeps: plain data."""
        place = BlockPosition.of(position)
        return {**super().state(place), "filled": place.filled, "parts": place.parts}

    def take_up_(self, state: Mapping[str, Any]) -> Position:
        """Go back to where a checkpoint was written."""
        documents = {name: value for name, value in state.items() if name not in ("filled", "parts")}
        return BlockPosition.of(super().take_up_(documents), state["filled"], state["parts"])
