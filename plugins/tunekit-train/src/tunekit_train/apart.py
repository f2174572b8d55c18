"""Sequences that a loss needs scores of and no gradient through: run apart from the others, without gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from .forward import Strategy
from .objective import Batch, Objective

BACKWARD = 2
"""What a backward costs, in forwards."""


class Apart(NamedTuple):
    """The numbers of the sequences of a batch that the loss learns from, and of those that are only scored."""

    learning: tuple[int, ...]
    scored: tuple[int, ...]


def divide(objective: Objective, batch: Batch, strategy: Strategy, further: int = 0) -> Apart | None:
    """Divide a batch where running its parts apart is cheaper, or None.

    Apart, a prompt that both parts share is run twice; together, the backward runs through both. `further` runs without
    gradient, of a reference say, are divided in the same way.
    """
    scored = objective.scored_only(batch)
    if not torch.is_grad_enabled() or not any(scored) or all(scored):
        return None
    apart = Apart(*(tuple(at for at, only in enumerate(scored) if only == wanted) for wanted in (False, True)))
    learning, only = (strategy.places(part_of(batch, numbers)) for numbers in apart)
    trained = 1 + BACKWARD + further
    return apart if trained * learning + (1 + further) * only < trained * strategy.places(batch) else None


def part_of(batch: Batch, numbers: tuple[int, ...]) -> Batch:
    """The same batch with these of its sequences alone; items that have none of them are left out."""
    wanted, items, first = set(numbers), [], 0
    for item in batch.items:
        kept = tuple(each for at, each in enumerate(item.sequences, first) if at in wanted)
        first += len(item.sequences)
        if kept:
            items.append(replace(item, sequences=kept))
    return Batch(tuple(items))
