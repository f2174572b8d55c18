"""Blocks of parameters: the embedding, layers, and the rest; and whose turn it is."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tunekit.values import BYTES, Estimate
from tunekit_train.layers import find_layers

from . import BadamConfig, Order


def blocks_of(model: Any, parameters: Iterable[Any], layers: int) -> list[list[Any]]:
    """Cut the parameters that train into blocks from the embedding up; a block in which nothing trains is none."""
    stack = find_layers(model) or ()
    place = {id(each): 1 + number // layers for number, layer in enumerate(stack) for each in layer.parameters()}
    last = 1 + len(stack)
    place |= {id(each): 0 for each in model.get_input_embeddings().parameters()}
    found: dict[int, list[Any]] = {}
    for parameter in parameters:
        found.setdefault(place.get(id(parameter), last), []).append(parameter)
    return [found[number] for number in sorted(found)]


def turn(steps: int, blocks: int, switch_every: int, order: Order, seed: int) -> int:
    """The number of the block that trains after so many steps."""
    visit = steps // switch_every
    round_, place = divmod(visit, blocks)
    if order == "random":
        places = list(range(blocks))
        random.Random(f"{seed} {round_}").shuffle(places)
        return places[place]
    return place if order == "ascending" else blocks - 1 - place


def estimate_block(config: BadamConfig, dtype: str, estimate: Estimate) -> Estimate:
    """Add gradients and two moments of the block with the most numbers, at `dtype`."""
    assert estimate.skeleton is not None, "the loader's estimate comes before the optimiser's"
    trained = [parameter for parameter in estimate.skeleton.parameters() if parameter.requires_grad]
    blocks = blocks_of(estimate.skeleton, trained, config.layers)
    largest = max(sum(int(parameter.numel()) for parameter in block) for block in blocks)
    memory = estimate.with_memory(optimiser=2 * BYTES[dtype] * largest)
    return replace(estimate, memory=memory, at_once=largest)
