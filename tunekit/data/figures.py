"""The figures of a stage's data: how many tokens, how many of them supervised, how long, how much would be padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..values import Account, Item, TokenSequence
from .lengths import Lengths, packing_share, padding_share


@dataclass(frozen=True)
class Figures:
    """What the tokens of a stage look like.

    `lengths` are those before any cut. `padding` is the share of positions that is padding where batches of
    `batch_rows` items in the order of the data are padded, `packing` the share that is filled where sequences are laid
    next to each other into rows of the limit; None where the stage's options do not tell. `rows` are those that the
    sequences lead back to.
    """

    sequences: int
    tokens: int
    supervised: int
    tokens_cut: int
    lengths: Lengths
    rows: int | None = None
    padding: float | None = None
    batch_rows: int | None = None
    packing: float | None = None

    @property
    def supervised_share(self) -> float:
        """The share of tokens with a loss."""
        return self.supervised / self.tokens if self.tokens else 0.0

    def to_mapping(self) -> dict[str, Any]:
        """Plain data."""
        names = ("sequences", "tokens", "supervised", "supervised_share", "tokens_cut", "padding", "packing")
        limit, beyond = self.lengths.limit, self.lengths.beyond
        counts = {str(length): count for length, count in self.lengths.counts.items()}
        values = {name: getattr(self, name) for name in names}
        return {**values, "limit": limit, "beyond_limit": beyond, "quantiles": self.lengths.to_mapping(),
                "lengths": counts}  # fmt: skip


def measure(items: Iterable[Item], config: Any = None, account: Account | None = None) -> Figures:
    """Measure items in one pass. `config` is that of the stage: its `batch.rows` and `batch.max_length`, if it has any.

    Lengths before any cut are the account's where it holds some: it knows those that were dropped or split, too.
    """
    own: list[tuple[int, ...]] = []
    supervised = cut = 0
    before: Counter[int] = Counter()
    places: set[str] = set()
    for item in items:
        own.append(tuple(len(sequence) for sequence in item.sequences))
        supervised += sum(map(count_supervised, item.sequences))
        cut += sum(int(sequence.cut) for sequence in item.sequences)
        before.update(len(sequence) + int(sequence.cut) for sequence in item.sequences)
        places.update(sequence.where for sequence in item.sequences)
    rows, limit = option(config, "batch.rows"), option(config, "batch.max_length")
    flat = [length for lengths in own for length in lengths]
    return Figures(
        sequences=len(flat),
        tokens=sum(flat),
        supervised=supervised,
        tokens_cut=cut,
        lengths=Lengths((account and _lengths(account)) or before, limit),
        rows=len(places),
        padding=padding_share(own, rows) if rows and flat else None,
        batch_rows=rows,
        packing=packing_share(flat, limit) if limit and flat else None,
    )


def recorded(account: Account, config: Any = None) -> Figures:
    """The figures that an account holds by itself."""
    sources = account.sources.values()
    return Figures(
        sequences=sum(source.sequences for source in sources),
        tokens=sum(source.tokens for source in sources),
        supervised=sum(source.supervised for source in sources),
        tokens_cut=sum(source.tokens_cut for source in sources),
        lengths=Lengths(_lengths(account), option(config, "batch.max_length")),
    )


def count_supervised(sequence: TokenSequence) -> int:
    """Tokens that are targets of the loss; the first never is."""
    weights = sequence.weights[1:]
    plain = weights.tolist() if hasattr(weights, "tolist") else weights  # a list counts ten times as fast as an array
    return len(plain) - plain.count(0)


def option(config: Any, path: str) -> int | None:
    """A whole number among the options of a stage, or None where it has no such option."""
    for name in path.split("."):
        config = getattr(config, name, None)
    return config if isinstance(config, int) else None


def _lengths(account: Account) -> Counter[int]:
    return sum((source.lengths for source in account.sources.values()), Counter[int]())
