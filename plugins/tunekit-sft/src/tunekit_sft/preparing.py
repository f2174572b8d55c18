"""Examples become blocks: made once and kept for the next run, or while they are trained on."""

from __future__ import annotations

from typing import Any

from tunekit.values import Examples, Kind, Prepared, StageContext
from tunekit_train import Encoder, Rules
from tunekit_train.preparing import prepare_with
from tunekit_train.streaming import StreamedItems

from .blocks import BlockEncoder
from .streamed_blocks import StreamedBlocks


def prepare_blocks(
    data: Examples, tokenizer: Any, size: int, cross_documents: bool, kinds: frozenset[Kind], context: StageContext
) -> Prepared:
    """Make blocks of all documents, or take those of an earlier run; streamed documents wait for the training."""
    encoder = BlockEncoder(Encoder(tokenizer, Rules()), size, cross_documents)
    made = prepare_with(encoder, data, kinds, context)
    return StreamedBlocks(made, encoder) if isinstance(made, StreamedItems) else made
