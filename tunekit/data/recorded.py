"""The data of a run as its record keeps it: the same tables as `tunekit data`, without a token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..display import Drawing, Heading, html, terminal
from ..values import Account
from .figures import recorded
from .histogram import Histogram
from .tables import figures_table, places_table, rows_table


@dataclass(frozen=True)
class RecordedData:
    """The account of each stage's data, by the stage's name; `configs` are the options of those stages.

    Print it with rich, or leave it as the last line of a notebook's cell.
    """

    accounts: Mapping[str, Account]
    configs: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, stage: str) -> Account:
        return self.accounts[stage]

    def __repr__(self) -> str:
        rows = (f"{name}: {account.kept:,} of {account.rows:,} rows" for name, account in self.accounts.items())
        return f"RecordedData({', '.join(rows)})"

    def __rich__(self) -> Any:
        return terminal(self._drawings())

    def _repr_html_(self) -> str:
        return html(self._drawings())

    def to_mapping(self) -> dict[str, Any]:
        """Plain data."""
        return {name: account.to_mapping() for name, account in self.accounts.items()}

    def _drawings(self) -> Iterator[Drawing]:
        for name, account in self.accounts.items():
            yield Heading(f"{name}: the data it was trained on")
            yield rows_table(account)
            if (places := places_table(account)) is not None:
                yield places
            figures = recorded(account, self.configs.get(name))
            if figures.sequences:
                yield figures_table(figures)
                yield Histogram(figures.lengths)
