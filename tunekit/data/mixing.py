"""Several sources become one stream: interleaved by weight, or shuffled within a buffer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Until = Literal["first", "last", "each"]


class Interleaved(Generic[T]):
    """Sources taken in turn, in exact proportion to their weights at every point.

    `starts` begin a pass over each source; they are told whether it is a later pass. The stream ends when the `first`
    source has ended, when the `last` has (the others start again until then), or when `each` has been read once.
    At every turn each source gains its weight and the one with the most goes, and pays the sum of all weights.
    """

    def __init__(self, starts: Sequence[Callable[[bool], Iterator[T]]], weights: Sequence[float], until: Until) -> None:
        self.starts, self.weights, self.until = starts, list(weights), until

    def __iter__(self) -> Iterator[T]:
        passes = [start(False) for start in self.starts]
        credit = [0.0] * len(passes)
        running, ended = set(range(len(passes))), set[int]()
        while running:
            for index in running:
                credit[index] += self.weights[index]
            chosen = max(sorted(running), key=credit.__getitem__)
            item = next(passes[chosen], _END)
            if item is _END:
                ended.add(chosen)
                if self.until == "first" or len(ended) == len(passes):
                    return
                if self.until == "each":
                    running.discard(chosen)
                    credit = [0.0] * len(passes)
                    continue
                passes[chosen] = self.starts[chosen](True)
                item = next(passes[chosen], _END)
                if item is _END:  # a source without a single example
                    running.discard(chosen)
                    continue
            credit[chosen] -= sum(self.weights[index] for index in running)
            yield item  # type: ignore[misc]


def shuffle_buffer(items: Iterable[T], size: int, seed: str) -> Iterator[T]:
    """Shuffle a stream of any length within a buffer of `size` items; the same seed gives the same order.

    Each item that arrives takes the place of one drawn at random, which goes out.
    """
    dice = random.Random(seed)
    buffer: list[T] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = dice.randrange(size)
        yield buffer[place]
        buffer[place] = item
    dice.shuffle(buffer)
    yield from buffer


_END = object()
