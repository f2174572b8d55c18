"""Optimisers whose weights to train and weights to use are two sets."""

from __future__ import annotations

from typing import Any


def average_(optimizer: Any) -> None:
    """Put the weights in place that are to be used, where the optimiser trains others: it has a method `eval` then.

    By the protocol of transformers, for schedule-free optimisers. Called before weights are evaluated, compared, saved
    or handed on. Again with no step between, it does nothing.
    """
    if callable(use := getattr(optimizer, "eval", None)):
        use()


def go_on_(optimizer: Any) -> None:
    """Put the weights in place that train. Called before a step's batches are drawn: they may be made with these."""
    if callable(train := getattr(optimizer, "train", None)):
        train()
