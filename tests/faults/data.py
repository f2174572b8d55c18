"""Faults of plugins that know no model: formats, readers, precision policies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

from faults.registry import fault, good, suite_of

from tunekit.catalog import Catalog
from tunekit.cli.new import Hook
from tunekit.hooks import hookimpl
from tunekit.testing import FormatSuite, PrecisionSuite, ReaderSuite
from tunekit.values import BadRow, Example, Machine, Precision, Row, Rows, Source


def formatting(change: Callable[[Any], Any]) -> Any:
    """The good format with its results, an iterator or None, changed."""

    class Faulty(good(Hook.FORMAT).GoodFormat):
        @hookimpl
        def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
            return change(super().tunekit_format_data(rows))

    rows = ({"question": "one?", "answer": "1"}, {"question": "two?", "answer": "2"})
    return suite_of(FormatSuite, Faulty(), rows=rows, bad_rows=({"question": "three?"},))


def each(change: Callable[[Any], Any]) -> Any:
    return formatting(lambda results: None if results is None else (change(result) for result in results))


@fault(FormatSuite, "test_each_good_row_becomes_one_example", "assert")
def rows_in_another_order():
    return formatting(lambda results: results and iter(list(results)[::-1]))


@fault(FormatSuite, "test_an_example_is_of_one_kind", "assert")
def an_example_that_is_both():
    return each(lambda result: replace(result, text="both"))


@fault(FormatSuite, "test_a_bad_row_says_why_and_what_to_do", "no remedy")
def a_bad_row_without_a_remedy():
    return each(lambda result: replace(result, remedy="") if isinstance(result, BadRow) else result)


@fault(FormatSuite, "test_no_row_is_lost", "assert")
def bad_rows_that_vanish():
    return formatting(lambda results: results and (each for each in results if isinstance(each, Example)))


@fault(FormatSuite, "test_columns_of_another_shape_are_left_to_others", r"assert \[\] is None")
def a_format_that_claims_everything():
    return formatting(lambda results: iter(()) if results is None else results)


@fault(FormatSuite, "test_formatting_twice_gives_the_same_examples", "assert")
def a_format_with_a_memory():
    seen = count()
    return each(lambda result: replace(result, where=f"{result.where} {next(seen)}"))


def reading(
    rows_change: Callable[[Rows], Rows] = lambda rows: rows,
    source_change: Callable[[Source], Source] = lambda source: source,
) -> Any:
    """A good reader, with what it is given or what it gives back changed."""

    class Faulty(Catalog.discover().load("files")):  # type: ignore[misc]
        @hookimpl
        def tunekit_read_data(self, source: Source) -> Rows:
            return rows_change(super().tunekit_read_data(source_change(source)))

    def source(self, folder, rows):
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Source(path=str(path))

    return suite_of(ReaderSuite, Faulty(), source=source)


@fault(ReaderSuite, "test_every_row_is_read_in_order", "assert")
def rows_read_backwards():
    return reading(lambda rows: replace(rows, read=lambda: iter(list(rows.read())[::-1])))


@fault(ReaderSuite, "test_columns_are_those_of_the_first_row", "assert")
def columns_that_nobody_has():
    return reading(lambda rows: replace(rows, columns=("other",)))


@fault(ReaderSuite, "test_reading_again_starts_again", "assert")
def rows_that_can_be_read_once():
    def once(rows):
        iterator = rows.read()
        return replace(rows, read=lambda: iterator)

    return reading(once)


@fault(ReaderSuite, "test_a_limit_keeps_the_first_rows", "assert")
def a_limit_that_does_nothing():
    return reading(source_change=lambda source: replace(source, limit=None))


@fault(ReaderSuite, "test_columns_have_the_names_that_the_source_gives_them", "assert")
def columns_that_keep_their_names():
    return reading(source_change=lambda source: replace(source, columns={}))


@fault(ReaderSuite, "test_two_passes_at_once_do_not_disturb_each_other", "assert|zip")
def passes_that_share_their_place():
    def share(rows):
        state = {}

        def read():
            state["rows"] = list(rows.read())
            while state["rows"]:
                yield state["rows"].pop(0)

        return replace(rows, read=read)

    return reading(share)


@fault(ReaderSuite, "test_the_fingerprint_changes_with_the_data_and_only_then", "assert")
def a_fingerprint_that_never_changes():
    return reading(lambda rows: replace(rows, fingerprint="0"))


@fault(ReaderSuite, "test_the_fingerprint_changes_with_the_data_and_only_then", "assert")
def a_fingerprint_that_always_changes():
    seen = count()
    return reading(lambda rows: replace(rows, fingerprint=str(next(seen))))


@fault(ReaderSuite, "test_a_source_that_is_not_there_is_named", "DID NOT RAISE")
def a_missing_file_that_reads_as_one_row():
    class Faulty(Catalog.discover().load("files")):  # type: ignore[misc]
        @hookimpl
        def tunekit_read_data(self, source: Source) -> Rows:
            return Rows(source, ("a",), lambda: iter([Row(1, "row 1", {"a": ""})]), "0")

    return suite_of(ReaderSuite, Faulty(), source=lambda self, folder, rows: Source(path="x"))


def deciding(change: Callable[[Precision], Precision]) -> Any:
    """The good policy, changed."""

    class Faulty(good(Hook.PRECISION).GoodPrecision):
        @hookimpl
        def tunekit_precision(self, machine: Machine) -> Precision:
            return change(super().tunekit_precision(machine))

    return suite_of(PrecisionSuite, Faulty())


@fault(PrecisionSuite, "test_it_serves_the_machine_or_says_why_not", "assert", name="a plain CPU")
def a_policy_without_a_reason():
    return deciding(lambda policy: replace(policy, reason=""))


@fault(PrecisionSuite, "test_it_serves_the_machine_or_says_why_not", "DID NOT RAISE", name="a plain CPU")
def a_policy_that_serves_what_it_says_it_refuses():
    return suite_of(PrecisionSuite, good(Hook.PRECISION).GoodPrecision(), refuses=frozenset({"a plain CPU"}))


@fault(PrecisionSuite, "test_it_asks_for_nothing_the_machine_cannot_do", "assert", name="a plain CPU")
def a_policy_that_overflows():
    return deciding(lambda policy: replace(policy, compute="float16"))


@fault(PrecisionSuite, "test_it_asks_for_nothing_the_machine_cannot_do", "assert", name="an NVIDIA card without bf16")
def a_policy_that_ignores_what_the_card_cannot_do():
    return deciding(lambda policy: replace(policy, compute="bfloat16"))


@fault(PrecisionSuite, "test_the_same_machine_gives_the_same_policy", "assert", name="a plain CPU")
def a_policy_that_cannot_decide():
    seen = count()
    return deciding(lambda policy: replace(policy, reason=str(next(seen))))
