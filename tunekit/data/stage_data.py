"""The data of one stage, prepared as a run prepares it, with all that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from ..calls import Calls
from ..display import Drawing, Heading, Section
from ..errors import DataError, Problem
from ..values import Account, Item, Plan, Prepared, Source, StagePlan
from .figures import Figures, measure
from .histogram import Histogram
from .reading import open_examples
from .surroundings import preparing
from .tables import figures_table, places_table, problems_table, rows_table
from .verdict import Verdict

STREAMED_ROWS = 10_000
"""Rows of each source that are looked at where data is streamed and no limit is given."""


@dataclass(frozen=True)
class StageData:
    """The data of one stage, prepared: what became of its rows (`account`), the `items`, and what would stop a run.

    `raised` are problems that kept it from being prepared. `limit`: only the first so many rows of each source were
    looked at.
    """

    stage: StagePlan
    account: Account
    items: Iterable[Item]
    tokenizer: Any
    calls: Calls
    raised: tuple[Problem, ...] = ()
    limit: int | None = None

    def __repr__(self) -> str:
        return f"StageData({self.name}: {self.verdict})"

    @property
    def name(self) -> str:
        """The name of the stage."""
        return self.stage.name

    @property
    def ok(self) -> bool:
        """Whether a run would start with this data."""
        return not self.problems

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All that would stop a run: what was raised, and the rows that cannot be used."""
        if self.raised and not self.account.problems:
            return self.raised
        try:
            self.account.stop_on_problems()
        except DataError as error:
            return (*self.raised, *error.problems)
        return self.raised

    @property
    def verdict(self) -> str:
        """Whether a run would start, in words, and if not, why not and what to do."""
        if not self.problems:
            return f"a run would start, on {self.account.kept:,} of {self.account.rows:,} rows"
        if self.raised or not self.account.stopping:
            return f"a run would stop: {self.problems[0]}"
        rows = f"{self.account.stopping:,} of {self.account.rows:,} rows cannot be used"
        return f"a run would stop: {rows}; {self.problems[-1].remedy}"

    @cached_property
    def figures(self) -> Figures:
        """Tokens, lengths, padding and packing."""
        return measure(self.items, self.stage.plugin.plugin.config, self.account)

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be said besides."""
        notes = []
        if self.stage.mixing.streaming:
            notes.append("the data is streamed, so only its head is looked at; a limit says how much")
        names = [source.name for source in self.stage.sources]
        kept, found = self.account.kept, self.figures.rows
        joined = any(source.joined for source in self.account.sources.values())
        if kept != found and not joined and not self.problems and len(set(names)) == len(names):
            notes.append(
                f"{kept:,} rows are said to be kept, but the sequences lead back to {found:,}: "
                f"{self.stage.plugin.name} ({self.stage.plugin.distribution}) gives a wrong account"
            )
        return tuple(notes)

    def drawings(self) -> Iterator[Drawing]:
        """What is shown of it, in order."""
        head = "row" if self.limit == 1 else f"{self.limit or 0:,} rows"
        looked = "every row" if self.limit is None else f"the first {head} of each source"
        yield Heading(f"{self.name}: {looked}")
        if self.notes:
            yield Section("", (), tuple((note,) for note in self.notes))
        if self.account.sources:
            yield rows_table(self.account)
        yield from filter(None, (places_table(self.account, self.account.problems), problems_table(self.raised)))
        if self.figures.sequences:
            yield figures_table(self.figures)
            yield Histogram(self.figures.lengths)
        yield Verdict(self.ok, self.verdict)

    def to_mapping(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "stage": self.name,
            "key": self.stage.key,
            "ok": self.ok,
            "verdict": self.verdict,
            "limit": self.limit,
            "rows": self.account.rows,
            "kept": self.account.kept,
            "sources": self.account.to_mapping(),
            "tokens": self.figures.to_mapping(),
            "problems": [
                {"where": problem.where, "message": problem.message, "remedy": problem.remedy}
                for problem in self.problems
            ],
            "notes": list(self.notes),
        }

    def find(self, most: int, row: int | None, source: Source | None) -> Iterator[Item]:
        """The first `most` items, or those of one row number, of one source or of all."""
        places = None if source is None else self._places(source)
        found = (
            item
            for item in self.items
            if (row is None or item.sequences[0].row == row) and (places is None or item.sequences[0].where in places)
        )
        return islice(found, most)

    def why_missing(self, row: int) -> str:
        """Why no item leads back to a row of this number."""
        for source in self.account.sources.values():
            told = {**source.left_out, "longer than the limit, and dropped": source.dropped}
            for reason, places in told.items():
                for where in places.where:
                    if where.endswith(f" {row}"):
                        return f"{where} is not trained on: {reason}"
        most = max((source.rows for source in self.account.sources.values()), default=0)
        if row > most:
            return f"there is no row {row:,}: {most:,} were read"
        return f"row {row:,} is not among those that are trained on"

    def _places(self, source: Source) -> set[str]:
        return {example.where for example in open_examples(self.calls, [source], limit=self.limit)}


def look_at(plan: Plan, calls: Calls, stage: StagePlan, tokenizer: Any, limit: int | None) -> StageData:
    """Prepare the data of one stage, and gather what is wrong with it."""
    streaming = stage.mixing.streaming
    limit = STREAMED_ROWS if streaming and limit is None else limit
    account, raised = Account(), tuple[Problem, ...]()
    items: Iterable[Item] = ()
    try:
        examples = open_examples(calls, stage.sources, stage.mixing, limit)
        account = examples.account
        prepared: Prepared = calls.one(
            stage.plugin,
            "tunekit_prepare_data",
            data=examples,
            tokenizer=tokenizer,
            context=preparing(plan, calls, stage),
        )
        account, items = prepared.account, list(prepared) if streaming else prepared
    except DataError as error:
        raised = error.problems
    return StageData(stage, account, items, tokenizer, calls, raised, limit)
