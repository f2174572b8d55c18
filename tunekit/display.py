"""Titled tables of plain text, drawn in a terminal by rich and in a notebook as HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

from .values import DEFAULT_ADAPTER

if TYPE_CHECKING:
    from .values import DataEstimate, Estimate, Plan, Trained

SHOWN_PARTS = 20
"""Rows of the table of what trains; an adapter on all layers of one family has 14."""


class Drawing(Protocol):
    """Anything that draws itself in a terminal and in a notebook."""

    def __rich__(self) -> Any: ...

    def _repr_html_(self) -> str: ...


@dataclass(frozen=True)
class Section:
    """One table: a title, the column names (none: two columns of fact and value), and rows of text.

    The columns named in `numbers` stand to the right; `note` is said below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()
    note: str = ""

    def __rich__(self) -> Any:
        return _rich_table(self)

    def _repr_html_(self) -> str:
        return _html_table(self)


@dataclass(frozen=True)
class Heading:
    """A line across the screen that says what follows."""

    text: str

    def __rich__(self) -> Any:
        from rich.rule import Rule
        from rich.text import Text

        return Rule(Text(self.text, style="bold"), align="left", style="dim")

    def _repr_html_(self) -> str:
        return f"<h3>{escape(self.text)}</h3>"


def plan_sections(plan: Plan) -> tuple[Section, ...]:
    """The plan as tables: the run, who does what, the data, what trains, and the memory it takes."""
    sections = [_run(plan), _steps(plan)]
    if plan.estimate is not None:
        sections += [_parameters(plan.estimate), *_trained(plan.estimate)]
        sections.append(_memory(plan.estimate, plan.machine.memory_bytes))
        if plan.estimate.data:
            sections.insert(2, _data(plan.estimate.data))
    notes = (*plan.notes, *(plan.estimate.notes if plan.estimate else ()))
    if notes:
        sections.append(Section("Notes", (), tuple(("", note) for note in notes)))
    return tuple(sections)


def terminal(drawings: Iterable[Drawing]) -> Any:
    """Draw tables, and whatever else, as one rich renderable."""
    from rich.console import Group

    return Group(*(drawing.__rich__() for drawing in drawings))


def html(drawings: Iterable[Drawing]) -> str:
    """Draw tables, and whatever else, as HTML that fits a notebook's own style."""
    return "<div class='tunekit-plan'>" + "".join(drawing._repr_html_() for drawing in drawings) + "</div>"


def count(number: float) -> str:
    """A count in short form: 134.5M, 2.44M, 980."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= size:
            divisor = 1e3 if unit == "k" else size
            return f"{number / divisor:.3g}{unit}"
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes in binary units: 1.25 GiB, 269 MiB."""
    for unit, bytes_each in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= bytes_each:
            return (
                f"{number / bytes_each:.3g} {unit}"
                if number / bytes_each < 1000
                else f"{number / bytes_each:.0f} {unit}"
            )
    return f"{number:.0f} B"


def _run(plan: Plan) -> Section:
    machine, precision = plan.machine, plan.precision
    device = machine.accelerators[0].name if machine.accelerators else f"{machine.processor}, {machine.cores} cores"
    dtypes = f"weights {precision.weights}, products {precision.compute}, trained parameters {precision.trainable}"
    rows = [
        ("model", plan.recipe.model),
        ("machine", f"{device}, {size(machine.memory_bytes)}"),
        ("precision", f"{dtypes}\n{precision.reason}"),
        *_adapters(plan),
        *((f"data of {stage.name}", ", ".join(source.name for source in stage.sources)) for stage in plan.stages),
        ("output", plan.recipe.output or "not chosen yet"),
    ]
    return Section("Run", (), tuple(rows))


def _adapters(plan: Plan) -> Iterator[tuple[str, str]]:
    """Which stages train which adapter, where it is not one fresh adapter for all."""
    if plan.adapters in ((), (DEFAULT_ADAPTER,)) and not any(stage.start for stage in plan.stages):
        return
    for name in plan.adapters:
        stages = [stage for stage in plan.stages if stage.adapter == name]
        begins = f", begins as {stages[0].start}" if stages[0].start else ""
        yield f"adapter {name}", ", ".join(plan.title(stage.index) for stage in stages) + begins


def _steps(plan: Plan) -> Section:
    rows = []
    exporting = {export.plugin.name: export.plugin for export in plan.exports}
    for step in plan.steps:
        found = [planned for name in step.plugin.split(", ") if (planned := plan.plugin(name)) is not None]
        found = [exporting[step.plugin]] if step.phase == "export" else found
        made_by = ", ".join(dict.fromkeys(f"{planned.distribution} {planned.version}" for planned in found))
        rows.append((step.phase, step.hook.removeprefix("tunekit_"), step.plugin, step.why, made_by))
    return Section("Steps, in order", ("phase", "hook", "plugin", "why", "distribution"), tuple(rows))


def _data(parts: Sequence[DataEstimate]) -> Section:
    """One column for each stage: what became of the sampled rows, and what the tokens of those kept look like."""
    facts: dict[str, Callable[[DataEstimate], str]] = {
        "rows": lambda part: "many" if part.rows is None else f"{part.rows:,}",
        "looked at": lambda part: f"{part.sampled:,}",
        "kept": lambda part: f"{part.sampled - part.left_out:,}",
        "left out": lambda part: f"{part.left_out:,}",
        "cut": lambda part: f"{part.too_long:,}",
        "tokens": lambda part: f"{part.tokens:,}",
        "supervised": lambda part: f"{part.supervised:.0%}",
        "longest": lambda part: f"{part.longest:,}",
        "padding saved": lambda part: f"{part.padding:.0%}",
        "packed places filled": lambda part: "" if part.packing is None else f"{part.packing:.0%}",
        "optimiser steps": lambda part: f"{part.steps:,}",
    }
    stages = tuple(part.stage for part in parts)
    told = ((name, *(tell(part) for part in parts)) for name, tell in facts.items())
    rows = tuple(row for row in told if any(row[1:]))
    return Section("Data, from a sample", ("", *stages), rows, frozenset(stages), "`tunekit data` looks at every row")


def _parameters(estimate: Estimate) -> Section:
    share = estimate.trainable / estimate.parameters if estimate.parameters else 0.0
    return Section(
        "Parameters",
        (),
        (("in all", count(estimate.parameters)), ("trained", f"{count(estimate.trainable)} ({share:.2%})")),
    )


def _trained(estimate: Estimate) -> Iterator[Section]:
    """What trains, part by part: once for all stages that train the same."""
    alike: dict[tuple[Trained, ...], list[str]] = {}
    for stage, parts in estimate.trained.items():
        alike.setdefault(parts, []).append(stage)
    for parts, stages in alike.items():
        shown = sorted(parts, key=lambda part: -part.parameters)[:SHOWN_PARTS]
        rows = tuple((part.name, f"{part.tensors}", count(part.parameters), part.dtype) for part in shown)
        left = len(parts) - len(shown)
        title = "What trains" if len(alike) == 1 else f"What trains in {', '.join(stages)}"
        columns = ("part", "tensors", "parameters", "stored in")
        note = f"and {left} smaller parts, in plan.json" if left else ""
        yield Section(title, columns, rows, frozenset({"tensors", "parameters"}), note)


def _memory(estimate: Estimate, available: int) -> Section:
    rows = [(part, size(number)) for part, number in estimate.memory.items()]
    verdict = "fits" if estimate.peak_bytes < available else "DOES NOT FIT"
    rows.append(("peak", f"{size(estimate.peak_bytes)} of {size(available)}: {verdict}"))
    return Section("Memory, estimated", (), tuple(rows))


def _rich_table(section: Section) -> Any:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=section.title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.show_header = bool(section.columns)
    for number, column in enumerate(section.columns or _plain_columns(section)):
        right = column in section.numbers
        table.add_column(
            column, style="cyan" if number == 0 else "", overflow="fold", justify="right" if right else "left"
        )
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in row))
    return Group(table, Text(f"{section.note}\n", style="dim")) if section.note else table


def _html_table(section: Section) -> str:
    columns = section.columns or _plain_columns(section)
    return "".join(
        [
            f"<h4>{escape(section.title)}</h4>" if section.title else "",
            "<table>",
            f"<tr>{''.join(_cells('th', columns, columns, section.numbers))}</tr>" if section.columns else "",
            *(f"<tr>{''.join(_cells('td', row, columns, section.numbers))}</tr>" for row in section.rows),
            "</table>",
            f"<p style='opacity: .7'>{escape(section.note)}</p>" if section.note else "",
        ]
    )


def _cells(tag: str, cells: Sequence[str], columns: Sequence[str], numbers: frozenset[str]) -> Iterator[str]:
    for cell, column in zip(cells, columns, strict=True):
        side = "right" if column in numbers else "left"
        text = escape(cell).replace(chr(10), "<br>")
        yield f"<{tag} style='text-align: {side}; vertical-align: top; padding: .15em 1em .15em 0'>{text}</{tag}>"


def _plain_columns(section: Section) -> tuple[str, ...]:
    return ("",) * max((len(row) for row in section.rows), default=0)
