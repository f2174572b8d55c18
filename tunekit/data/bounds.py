"""Accounts of data in little room, whatever the data is like: every count stays exact."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..values import Account, Places, SourceAccount
from ..values.account import KEPT

REASONS = 100
"""Reasons that a record keeps by name; rows left out for any other are counted together."""
LENGTHS = 1000
"""Different lengths that are kept exactly; where there are more, they are rounded to three digits."""


def bounded(account: Account) -> Account:
    """The same account, with the most frequent reasons and with lengths to three digits where there are many."""
    result = Account()
    result.sources = {name: _bounded(source) for name, source in account.sources.items()}
    return result


def frequent(left_out: dict[str, Places], most: int = REASONS) -> dict[str, Places]:
    """The most frequent reasons, and all others as one."""
    if len(left_out) <= most:
        return left_out
    ordered = sorted(left_out, key=lambda reason: -left_out[reason].count)
    others = [left_out[reason] for reason in ordered[most:]]
    where = [place for places in others for place in places.where]
    rest = Places(sum(places.count for places in others), where[:KEPT])
    return {**{reason: left_out[reason] for reason in ordered[:most]}, "other reasons": rest}


def _bounded(source: SourceAccount) -> SourceAccount:
    return replace(source, left_out=frequent(source.left_out), lengths=_rounded(source.lengths))


def _rounded(lengths: Counter[int]) -> Counter[int]:
    if len(lengths) <= LENGTHS:
        return lengths
    result: Counter[int] = Counter()
    for length, count in lengths.items():
        unit = 10 ** max(0, len(str(length)) - 3)
        result[round(length / unit) * unit] += count
    return result
