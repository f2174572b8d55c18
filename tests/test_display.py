"""Numbers and tables as people read them."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from tunekit.display import Section, _data, count, html, size, terminal
from tunekit.values import DataEstimate


@pytest.mark.parametrize(("number", "text"), [(134_515_008, "135M"), (2_442_240, "2.44M"), (980, "980"), (7e9, "7B")])
def test_counts_are_short(number, text):
    assert count(number) == text


@pytest.mark.parametrize(("number", "text"), [(1.25 * 2**30, "1.25 GiB"), (269_060_552, "257 MiB"), (12, "12 B")])
def test_sizes_are_in_binary_units(number, text):
    assert size(number) == text


def test_html_escapes_what_users_wrote():
    assert "&lt;script&gt;" in html([Section("t", (), (("<script>", "a"),))])


def estimate(**changes):
    fields = {"stage": "sft", "sampled": 512, "rows": None, "tokens": 9000, "padding": 0.25, "supervised": 0.5}
    return DataEstimate(**{**fields, "too_long": 7, "longest": 2048, "steps": 30, "left_out": 12, **changes})


def test_the_plan_says_what_became_of_the_sampled_rows():
    rows = dict(_data([estimate()]).rows)
    assert [rows[name] for name in ("rows", "looked at", "kept", "left out", "cut")] == [
        "many",
        "512",
        "500",
        "12",
        "7",
    ]
    assert "packed places filled" not in rows


def test_the_plan_has_a_column_for_each_stage_and_says_how_full_packed_rows_are():
    section = _data([estimate(), estimate(stage="dpo", packing=0.97, rows=10_000)])
    assert section.columns == ("", "sft", "dpo")
    assert ("packed places filled", "", "97%") in section.rows
    assert ("rows", "many", "10,000") in section.rows


@pytest.mark.parametrize("width", [60, 80])
def test_a_note_below_a_table_is_as_wide_as_the_screen(width):
    console = Console(file=StringIO(), width=width)
    console.print(terminal([Section("t", ("a",), (("1",),), note="a note that is wider than the table by far")]))
    assert "a note that is wider than the table by far\n" in console.file.getvalue()


def test_columns_of_numbers_stand_to_the_right():
    section = Section("t", ("what", "rows"), (("a", "1"), ("b", "1,000")), frozenset({"rows"}))
    assert "text-align: right; vertical-align: top; padding: .15em 1em .15em 0'>1,000<" in html([section])
    console = Console(file=StringIO(), width=60)
    console.print(terminal([section]))
    assert " a          1 \n" in console.file.getvalue()
