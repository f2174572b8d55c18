"""Tables of what became of the rows of a stage, for terminal and notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..display import Section
from ..errors import Problem
from ..values import Account, Places, SourceAccount
from .bounds import frequent
from .figures import Figures

ROWS_SHOWN = 10
"""Places that a table names of one thing; the rest are counted."""
REASONS_SHOWN = 20
"""Reasons that a table names; rows left out for any other are one line."""
NUMBERS = ("rows", "kept", "left out", "dropped", "cut", "split", "duplicates")


def rows_table(account: Account) -> Section:
    """One line for each source: what became of its rows."""
    lines = [(_named(source), *map(_number, _fates(source))) for source in account.sources.values()]
    if len(lines) > 1:
        totals = (sum(column) for column in zip(*map(_fates, account.sources.values()), strict=True))
        lines.append(("in all", *map(_number, totals)))
    note = "rows = kept + left out + dropped; those cut or split are among the kept"
    return Section("", ("source", *NUMBERS), tuple(lines), frozenset(NUMBERS), note)


def places_table(account: Account, problems: Sequence[Problem] = ()) -> Section | None:
    """Which rows were left out, dropped, cut, split, or say the same as an earlier one; None where there are none."""
    lines = []
    for told, places in _all_places(account.sources.values()):
        remedy = _remedy([problem for problem in problems if LEFT_OUT + problem.message == told])
        lines.append((f"{told}\n→ {remedy}" if remedy else told, _number(places.count), compact(places)))
    columns = ("what", "rows", "where")
    return Section("Rows to look at", columns, tuple(lines), frozenset({"rows"})) if lines else None


def _remedy(problems: Sequence[Problem]) -> str:
    """What to do about all of these, or about the first where each wants something else."""
    different = dict.fromkeys(problem.remedy for problem in problems)
    if len(different) < 2:
        return "".join(different)
    return f"{problems[0].where}: {problems[0].remedy}"


def problems_table(problems: Iterable[Problem]) -> Section | None:
    """Problems that are not those of single rows; None where there are none."""
    lines = tuple((problem.where, problem.message, problem.remedy) for problem in problems)
    return Section("Problems", ("where", "what", "what to do"), lines) if lines else None


def figures_table(figures: Figures) -> Section:
    """How many tokens there are, and what they are like."""
    cut = f", {figures.tokens_cut:,} more were cut away" if figures.tokens_cut else ""
    lengths = ", ".join(f"{name} {length:,}" for name, length in figures.lengths.to_mapping().items())
    facts = {
        "sequences": f"{figures.sequences:,}",
        "tokens": f"{figures.tokens:,}{cut}",
        "supervised": f"{figures.supervised:,} tokens, {figures.supervised_share:.1%}",
        "lengths": f"{lengths} tokens, before any cut" if lengths else "",
    }
    if figures.padding is not None:
        rows = f"{figures.batch_rows:,} {'row' if figures.batch_rows == 1 else 'rows'} at a time"
        facts["padding"] = f"{figures.padding:.1%} of all positions, if padded {rows} in the order of the data"
    if figures.packing is not None:
        limit = f"{figures.lengths.limit:,} tokens"
        facts["packing"] = f"{figures.packing:.1%} of all positions filled, if packed into rows of {limit} (next fit)"
    return Section("Tokens", (), tuple((name, fact) for name, fact in facts.items() if fact))


def compact(places: Places) -> str:
    """Places in few words: `a.json, row 3, 7, 9; b.json, row 1 and 12 more`."""
    groups: dict[str, list[str]] = {}
    shown = places.where[:ROWS_SHOWN]
    for where in shown:
        found = re.fullmatch(r"(.*\D)(\d+)", where, re.DOTALL)
        head, number = (found[1], found[2]) if found else (where, "")
        groups.setdefault(head, []).append(number)
    told = "; ".join(head + ", ".join(filter(None, numbers)) for head, numbers in groups.items())
    more = places.count - len(shown)
    return f"{told} and {more:,} more" if more > 0 else told


LEFT_OUT = "left out: "


def _all_places(sources: Iterable[SourceAccount]) -> Iterator[tuple[str, Places]]:
    """Each thing that happened to rows, with where it did, over all sources."""
    sources = list(sources)
    reasons = dict.fromkeys(reason for source in sources for reason in source.left_out)
    left_out = {reason: _together(source.left_out.get(reason, Places()) for source in sources) for reason in reasons}
    for reason, places in frequent(left_out, REASONS_SHOWN).items():
        yield LEFT_OUT + reason, places
    told: Mapping[str, str] = {
        "dropped": "dropped: longer than the limit",
        "cut": "cut: longer than the limit",
        "split": "split: longer than the limit",
        "duplicates": "duplicate: says the same as an earlier row",
    }
    for name, text in told.items():
        places = _together(getattr(source, name) for source in sources)
        if places.count:
            yield text, places


def _together(several: Iterable[Places]) -> Places:
    result = Places()
    for places in several:
        result.count += places.count
        result.where.extend(places.where)
    return result


def _fates(source: SourceAccount) -> tuple[int, ...]:
    left_out = sum(places.count for places in source.left_out.values())
    others = (source.dropped, source.cut, source.split, source.duplicates)
    return (source.rows, source.kept, left_out, *(places.count for places in others))


def _named(source: SourceAccount) -> str:
    """The name of its file, else its own name; below it what it was read as, and its fingerprint."""
    name = Path(source.name).name if Path(source.name).is_absolute() else source.name
    facts = ", ".join(filter(None, (source.format, source.fingerprint[:12])))
    return f"{name}\n{facts}" if facts else name


def _number(count: int) -> str:
    return f"{count:,}"
