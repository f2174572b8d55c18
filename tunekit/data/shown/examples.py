"""Examples as the model will learn from them: token by token, each with what its loss weighs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ...values import Item, TokenSequence
from ..figures import count_supervised
from .pieces import Piece, pieces_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions


@dataclass(frozen=True, slots=True)
class Gap:
    """Tokens that are not shown, and why."""

    tokens: int
    supervised: int
    same: bool = False

    def __str__(self) -> str:
        told = f"the same {self.tokens:,} tokens as above" if self.same else f"{self.tokens:,} tokens not shown"
        return f"… {told}, {f'{self.supervised:,}' if self.supervised else 'none'} of them supervised …"


@dataclass(frozen=True)
class ShownSequence:
    """One sequence; `name` tells it from the others of its item, `shared` tokens at its start are those of the first.

    At most `most` tokens are shown, half of them from its end.
    """

    name: str
    sequence: TokenSequence
    tokenizer: Any
    most: int
    shared: int = 0

    @cached_property
    def parts(self) -> tuple[Piece | Gap, ...]:
        """What is shown, in order, with gaps."""
        return tuple(self._parts())

    @property
    def facts(self) -> str:
        """Its length, and how much of it is supervised."""
        length, supervised = len(self.sequence), count_supervised(self.sequence)
        share = supervised / length if length else 0.0
        cut = f", {self.sequence.cut:,} more cut away" if self.sequence.cut else ""
        return f"{length:,} tokens, {supervised:,} supervised ({share:.0%}){cut}"

    def to_mapping(self) -> dict[str, Any]:
        """Plain data."""
        parts = [
            {"not_shown": part.tokens, "supervised": part.supervised, "same_as_first": part.same}
            if isinstance(part, Gap)
            else {"text": part.text, "ids": part.ids, "weights": part.weights, "special": part.special}
            for part in self.parts
        ]
        counts = {"tokens": len(self.sequence), "supervised": count_supervised(self.sequence)}
        return {"name": self.name, **counts, "cut": int(self.sequence.cut), "parts": parts}

    def _parts(self) -> Iterator[Piece | Gap]:
        length, start = len(self.sequence), self.shared
        if start:
            yield self._gap(0, start, same=True)
        if length - start <= self.most:
            yield from self._pieces(start, length)
            return
        head, tail = start + self.most // 2, length - (self.most - self.most // 2)
        yield from self._pieces(start, head)
        yield self._gap(head, tail)
        yield from self._pieces(tail, length)

    def _pieces(self, start: int, end: int) -> Iterator[Piece]:
        return pieces_of(self.tokenizer, self.sequence.ids, self.sequence.weights, start, end)

    def _gap(self, start: int, end: int, same: bool = False) -> Gap:
        weights = self.sequence.weights[max(start, 1) : end]
        return Gap(end - start, sum(1 for weight in weights if weight), same)


@dataclass(frozen=True)
class ShownItem:
    """One item: its sequences, and what is said of it."""

    stage: str
    item: Item
    tokenizer: Any
    most: int

    @property
    def where(self) -> str:
        """The row it was made from."""
        return self.item.sequences[0].where

    @property
    def facts(self) -> tuple[str, ...]:
        """Label, margin, and how its sequences differ."""
        facts = []
        if self.item.label is not None:
            facts.append(f"labelled {'good' if self.item.label else 'bad'}")
        if self.item.margin is not None:
            facts.append(f"margin {self.item.margin:g}")
        if self._is_pair:
            facts.append(self._difference())
        return tuple(facts)

    @property
    def sequences(self) -> tuple[ShownSequence, ...]:
        """Its sequences; what the second shares with the first is shown once."""
        first, *others = self.item.sequences
        names = self._names()
        shared = (0, *(_shared(first, other) for other in others))
        return tuple(
            ShownSequence(name, sequence, self.tokenizer, self.most, same)
            for name, sequence, same in zip(names, self.item.sequences, shared, strict=True)
        )

    def to_mapping(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "stage": self.stage,
            "row": int(self.item.sequences[0].row),
            "where": self.where,
            "label": self.item.label,
            "margin": self.item.margin,
            "sequences": [sequence.to_mapping() for sequence in self.sequences],
        }

    @property
    def _is_pair(self) -> bool:
        """Whether these are a chosen and a rejected answer, and not parts of a block or answers to be told apart."""
        return len(self.item.sequences) == 2 and self.item.label is None and self._of_one_row

    @property
    def _of_one_row(self) -> bool:
        return len({sequence.where for sequence in self.item.sequences}) == 1

    def _names(self) -> tuple[str, ...]:
        if len(self.item.sequences) == 1:
            return ("",)
        if self._is_pair:
            return ("chosen", "rejected")
        if self._of_one_row:
            return tuple(f"answer {number}" for number in range(1, len(self.item.sequences) + 1))
        return tuple(sequence.where for sequence in self.item.sequences)

    def _difference(self) -> str:
        chosen, rejected = self.item.sequences
        shared = _shared(chosen, rejected)
        if shared == len(chosen) == len(rejected):
            return "chosen and rejected are the same"
        own = f"{len(chosen) - shared:,} chosen and {len(rejected) - shared:,} rejected tokens differ"
        return f"the first {shared:,} tokens are shared, then {own}"


@dataclass(frozen=True)
class Shown:
    """Examples token by token: print it with rich, or leave it as the last line of a notebook's cell."""

    items: tuple[ShownItem, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"Shown({', '.join(item.where for item in self.items)})"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        from .terminal import draw

        yield from draw(self, None if console.no_color else console.color_system)

    def _repr_html_(self) -> str:
        from .html import draw

        return draw(self)

    @property
    def weights(self) -> tuple[float, ...]:
        """The different loss weights of all supervised tokens that are shown, the largest first."""
        parts = (part for item in self.items for sequence in item.sequences for part in sequence.parts)
        return tuple(sorted({part.weight for part in parts if isinstance(part, Piece) and part.weight}, reverse=True))

    def to_mapping(self) -> list[dict[str, Any]]:
        """Plain data."""
        return [item.to_mapping() for item in self.items]


def _shared(first: TokenSequence, second: TokenSequence) -> int:
    """How many tokens at the start of two sequences are the same, in id and in weight."""
    pairs = zip(_targets(first), _targets(second), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _targets(sequence: TokenSequence) -> Sequence[tuple[int, float]]:
    return [(int(number), float(weight)) for number, weight in zip(sequence.ids, sequence.weights, strict=True)]
