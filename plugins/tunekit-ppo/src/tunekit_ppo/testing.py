"""For tests of what learns from answers: prompts and answers that nobody asked or gave."""

from __future__ import annotations

import numpy as np

from tunekit.values import Message, TokenSequence
from tunekit_train import Asked, Prompts
from tunekit_train.testing import random_items

from .objective import Answered


def asking(count: int) -> Prompts:
    """Prompts of a few tokens."""
    asked = (Message("user", "Which?"),)
    return Prompts(Asked(np.arange(3, 6, dtype=np.int32), asked, None, {}, at, f"row {at}", "") for at in range(count))


def answers(count: int = 6) -> list[Answered]:
    """Answers with made-up figures, on the tokens of `random_items`; about as probable as in a random tiny model."""
    dice, found = np.random.default_rng(0), []
    for item in random_items(count):
        (sequence,) = item.sequences
        weights = [float(weight > 0) for weight in sequence.weights]
        tokens = sum(map(bool, weights[1:]))
        values, advantages, returns = dice.normal(size=(3, tokens)).astype(np.float32)
        found.append(
            Answered(
                (TokenSequence(sequence.ids, weights, sequence.row, "row"),),
                log_probs=(dice.normal(size=tokens) * 0.1 - 4.85).astype(np.float32),
                values=values,
                advantages=advantages,
                returns=returns,
                told={"reward": float(item.tokens)},
            )
        )
    return found
