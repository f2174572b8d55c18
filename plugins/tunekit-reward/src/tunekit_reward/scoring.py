"""Valuing texts with a trained reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tunekit.errors import DataError, TunekitError
from tunekit.values import Account, Example, Item, ModelBundle, Prompt, TokenSequence
from tunekit_train import Batch, Encoder, Forward, Rules, SequenceValues
from tunekit_train.forward import Strategy, prepared
from tunekit_train.heads import TrainedHead, ValueHead, head_of, saved_head

ROWS = 8
"""Sequences valued at once."""


def score(bundle: ModelBundle, texts: Sequence[Prompt], rules: Rules) -> list[float]:
    """The reward of each text as it is, or of each conversation with its answer, in their order.

    A conversation is written and cut as those of the training data were. Raises TunekitError where the model has no
    value head, and for a conversation that cannot be written or a text without tokens.
    """
    head = head_of(bundle.model) or saved_head(bundle.saved_adapter, bundle.source)
    if head is None:
        raise TunekitError(f"{bundle.source} has no value head, so it cannot value a text", "train a `reward` stage")
    sequences = [_encode(text, number, bundle.tokenizer, rules) for number, text in enumerate(texts, 1)]
    order = sorted(range(len(texts)), key=lambda number: len(sequences[number]))
    values = [0.0] * len(texts)
    training = bundle.model.training
    bundle.model.eval()
    try:
        for start in range(0, len(order), ROWS):
            chosen = order[start : start + ROWS]
            found = _values(bundle, head, [sequences[number] for number in chosen])
            for number, value in zip(chosen, found, strict=True):
                values[number] = value
    finally:
        bundle.model.train(training)
    return values


def _values(bundle: ModelBundle, head: ValueHead, sequences: Sequence[TokenSequence]) -> list[float]:
    """Run one batch, padded."""
    need, precision = SequenceValues(), bundle.precision
    padding = next((at for at in (bundle.tokenizer.pad_token_id, bundle.tokenizer.eos_token_id) if at is not None), 0)
    strategy = Strategy("padded", "a few texts", padding)
    batch = Batch(tuple(Item((sequence,)) for sequence in sequences))
    device = next(bundle.model.parameters()).device
    layout = strategy.lay_out(batch).to(device)
    source = TrainedHead(head.to(device), "an earlier stage")
    dtype = getattr(torch, precision.compute)
    with (
        torch.no_grad(),
        prepared(bundle.model, strategy, precision.autocast),
        torch.autocast(device.type, dtype, enabled=precision.autocast),
    ):
        values: list[float] = need.provide(Forward(bundle.model, batch, layout, (need,), {need: source})).tolist()
    return values


def _encode(text: Prompt, number: int, tokenizer: Any, rules: Rules) -> TokenSequence:
    where = f"text {number}"
    if isinstance(text, str):
        ids = list(tokenizer(text)["input_ids"])
        if not ids:
            raise TunekitError(f"{where} has no tokens", "give some text")
        return TokenSequence(ids, [0.0] * len(ids), number, where)
    account = Account()
    made = Encoder(tokenizer, rules).encode([Example(number, where, tuple(text))], account)
    if account.problems:
        raise DataError(account.problems)
    return made[0][0].sequences[0]
