"""Titled tables of plain text, drawn in a terminal by rich and in a notebook as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .values import DataEstimate, Estimate, Plan


@dataclass(frozen=True)
class Section:
    """One table: a title, the column names (none: two columns of fact and value), and rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def plan_sections(plan: Plan) -> tuple[Section, ...]:
    """The plan as tables: the run, who does what, the data, what trains, and the memory it takes."""
    sections = [_run(plan), _steps(plan)]
    if plan.estimate is not None:
        sections += [_parameters(plan.estimate), _memory(plan.estimate, plan.machine.memory_bytes)]
        if plan.estimate.data:
            sections.insert(2, _data(plan.estimate.data))
    notes = (*plan.notes, *(plan.estimate.notes if plan.estimate else ()))
    if notes:
        sections.append(Section("Notes", (), tuple(("", note) for note in notes)))
    return tuple(sections)


def terminal(sections: Iterable[Section]) -> Any:
    """Draw sections as one rich renderable."""
    from rich.console import Group

    return Group(*(_rich_table(section) for section in sections))


def html(sections: Iterable[Section]) -> str:
    """Draw sections as HTML that fits a notebook's own style."""
    return "<div class='tunekit-plan'>" + "".join(_html_table(section) for section in sections) + "</div>"


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
        *((f"data of {stage.name}", ", ".join(source.name for source in stage.sources)) for stage in plan.stages),
        ("output", plan.recipe.output or "not chosen yet"),
    ]
    return Section("Run", (), tuple(rows))


def _steps(plan: Plan) -> Section:
    rows = []
    for step in plan.steps:
        found = [planned for name in step.plugin.split(", ") if (planned := plan.plugin(name)) is not None]
        made_by = ", ".join(dict.fromkeys(f"{planned.distribution} {planned.version}" for planned in found))
        rows.append((step.phase, step.hook.removeprefix("tunekit_"), step.plugin, step.why, made_by))
    return Section("Steps, in order", ("phase", "hook", "plugin", "why", "distribution"), tuple(rows))


def _data(parts: Sequence[DataEstimate]) -> Section:
    columns = ("stage", "rows", "tokens in sample", "supervised", "padding saved", "longest", "cut", "steps")
    rows = tuple(
        (
            part.stage,
            "many" if part.rows is None else f"{part.rows:,}",
            f"{part.tokens:,} in {part.sampled:,} rows",
            f"{part.supervised:.0%}",
            f"{part.padding:.0%}",
            f"{part.longest:,}",
            f"{part.too_long:,}",
            f"{part.steps:,}",
        )
        for part in parts
    )
    return Section("Data", columns, rows)


def _parameters(estimate: Estimate) -> Section:
    share = estimate.trainable / estimate.parameters if estimate.parameters else 0.0
    return Section(
        "Parameters",
        (),
        (("in all", count(estimate.parameters)), ("trained", f"{count(estimate.trainable)} ({share:.2%})")),
    )


def _memory(estimate: Estimate, available: int) -> Section:
    rows = [(part, size(number)) for part, number in estimate.memory.items()]
    verdict = "fits" if estimate.peak_bytes < available else "DOES NOT FIT"
    rows.append(("peak", f"{size(estimate.peak_bytes)} of {size(available)}: {verdict}"))
    return Section("Memory, estimated", (), tuple(rows))


def _rich_table(section: Section) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=section.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.show_header = bool(section.columns)
    for number, column in enumerate(section.columns or _plain_columns(section)):
        table.add_column(column, style="cyan" if number == 0 else "", overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _html_table(section: Section) -> str:
    return "".join(
        [
            f"<h4>{escape(section.title)}</h4><table>",
            f"<tr>{''.join(_cells('th', section.columns))}</tr>" if section.columns else "",
            *(f"<tr>{''.join(_cells('td', row))}</tr>" for row in section.rows),
            "</table>",
        ]
    )


def _cells(tag: str, cells: Sequence[str]) -> Iterator[str]:
    for cell in cells:
        yield f"<{tag} style='text-align: left'>{escape(cell).replace(chr(10), '<br>')}</{tag}>"


def _plain_columns(section: Section) -> tuple[str, ...]:
    return ("",) * max((len(row) for row in section.rows), default=0)
