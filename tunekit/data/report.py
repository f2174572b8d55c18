"""A report on the data of a recipe: every row accounted for, every token to be looked at, no weight loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calls import Calls
from ..display import Drawing, html, terminal
from ..errors import PlanError, Problem
from ..values import Plan, Source, StagePlan
from .shown import Shown, ShownItem
from .stage_data import StageData, look_at
from .surroundings import load_tokenizer, preparing

SHOWN_TOKENS = 1024
"""Tokens of a sequence that are shown."""
SHOWN_OF_A_ROW = 20
"""Items that are shown of one row number: the pieces of a row that was split, and rows of several sources."""


@dataclass(frozen=True)
class DataReport:
    """The data of every stage. Print it with rich, or leave it as the last line of a notebook's cell."""

    stages: tuple[StageData, ...]

    @property
    def ok(self) -> bool:
        """Whether a run would start with this data."""
        return all(data.ok for data in self.stages)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All that would stop a run."""
        return tuple(problem for data in self.stages for problem in data.problems)

    def show(
        self,
        count: int = 3,
        stage: int | str | None = None,
        source: str | None = None,
        row: int | None = None,
        tokens: int = SHOWN_TOKENS,
    ) -> Shown:
        """Show the first `count` examples, or those of row number `row`, token by token.

        Of each stage, or of one by its name or its number from 0; of one source by its name in the report. `tokens` are
        shown of each sequence at most. Raises PlanError where there is no such stage or source.
        """
        items, notes = list[ShownItem](), list[str]()
        for data in self._chosen(stage):
            wanted = None if source is None else _source(data.stage, source)
            found = list(data.find(count if row is None else SHOWN_OF_A_ROW, row, wanted))
            items.extend(ShownItem(data.name, item, data.tokenizer, tokens) for item in found)
            if row is not None and not found:
                notes.append(f"{data.name}: {data.why_missing(row)}")
            elif not found:
                notes.append(f"{data.name}: no row is trained on")
        return Shown(tuple(items), tuple(notes))

    def draw_lengths(self, path: str | Path) -> None:
        """Draw the lengths of all sequences into a PNG file. Raises TunekitError where matplotlib is not installed."""
        from .picture import draw_lengths

        draw_lengths([(data.name, data.figures.lengths) for data in self.stages], Path(path))

    def to_mapping(self) -> dict[str, Any]:
        """Plain data."""
        return {"ok": self.ok, "stages": [data.to_mapping() for data in self.stages]}

    def __repr__(self) -> str:
        rows = ", ".join(f"{data.name}: {data.account.kept:,} of {data.account.rows:,} rows" for data in self.stages)
        return f"DataReport({rows}, {'ok' if self.ok else 'not ok'})"

    def __rich__(self) -> Any:
        return terminal(self._drawings())

    def _repr_html_(self) -> str:
        return html(self._drawings())

    def _drawings(self) -> Iterator[Drawing]:
        return (drawing for data in self.stages for drawing in data.drawings())

    def _chosen(self, stage: int | str | None) -> Sequence[StageData]:
        chosen = {each.index for each in choose([data.stage for data in self.stages], stage)}
        return [data for data in self.stages if data.stage.index in chosen]


def report_data(plan: Plan, stage: int | str | None = None, limit: int | None = None) -> DataReport:
    """Prepare the data of every stage, or of one, as a run would, and gather what is wrong instead of raising it.

    `limit`: only the first so many rows of each source. Raises PlanError where there is no such stage.
    """
    calls = Calls(plan.plugins)
    stages = choose(plan.stages, stage)
    tokenizer, _ = load_tokenizer(preparing(plan, calls, None), plan.load_request)
    return DataReport(tuple(look_at(plan, calls.for_stage(each.index), each, tokenizer, limit) for each in stages))


def choose(stages: Sequence[StagePlan], wanted: int | str | None) -> Sequence[StagePlan]:
    """All stages, or those of this name or number."""
    chosen = [stage for stage in stages if wanted is None or wanted in (stage.index, stage.name, str(stage.index))]
    if chosen:
        return chosen
    known = ", ".join(f"{stage.name} ({stage.index})" for stage in stages)
    if wanted is None:
        raise PlanError([Problem("stages", "is empty, so there is no data to look at", "name one: `stages: [sft]`")])
    raise PlanError([Problem("stage", f"{wanted!r} is no stage of this recipe", f"its stages are {known}")])


def _source(stage: StagePlan, name: str) -> Source:
    for source in stage.sources:
        if name in (source.name, source.key, source.path, str(source.path).rpartition("/")[2]):
            return source
    known = ", ".join(source.name for source in stage.sources)
    raise PlanError([Problem("source", f"{name!r} is no source of {stage.name}", f"its sources are {known}")])
