"""What a data format has to satisfy: one result for each row, and rows of another shape left to others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..values import ROLES, BadRow, Example, Message
from .data import rows_of
from .plugins import PluginSuite


class FormatSuite(PluginSuite):
    """`rows` are good ones; `bad_rows` have the same columns and cannot be used, each for a reason of its own."""

    rows: ClassVar[Sequence[Mapping[str, Any]]]
    bad_rows: ClassVar[Sequence[Mapping[str, Any]]]
    foreign_rows: ClassVar[Sequence[Mapping[str, Any]]] = ({"surely": "a", "foreign": "b"},)

    def results(self, values: Sequence[Mapping[str, Any]]) -> list[Example | BadRow] | None:
        """What the format makes of these rows."""
        results = self.calls().own("tunekit_format_data", rows=rows_of(values))
        return None if results is None else list(results)

    def test_each_good_row_becomes_one_example(self) -> None:
        """In the order of the rows, each leading back to its own."""
        results = self.results(self.rows)
        assert results is not None, "the format does not know its own columns"
        assert [result.row for result in results] == list(range(1, len(self.rows) + 1))
        for result in results:
            assert isinstance(result, Example), f"row {result.row}: {result.reason}"
            assert f"row {result.row}" in result.where

    def test_an_example_is_of_one_kind(self) -> None:
        """A document, a conversation, a preference or a labelled conversation, never two at once; roles are known."""
        for result in self.results(self.rows) or ():
            assert isinstance(result, Example)
            assert bool(result.messages) != (result.text is not None)
            assert bool(result.chosen) == bool(result.rejected)
            assert not result.chosen or (result.messages and result.label is None and result.chosen != result.rejected)
            assert result.label is None or result.messages
            assert result.margin is None or result.chosen
            for message in (*result.messages, *result.chosen, *result.rejected):
                _require_canonical(message)
            for tool in result.tools:
                assert tool["type"] == "function"
                assert isinstance(tool["function"]["name"], str)

    def test_a_bad_row_says_why_and_what_to_do(self) -> None:
        """Among good rows, so that the columns are known."""
        for bad in self.bad_rows:
            results = self.results([*self.rows, bad])
            assert results is not None
            last = results[-1]
            assert isinstance(last, BadRow), f"{bad} became {last}"
            assert last.reason.strip(), f"{bad}: no reason"
            assert last.remedy.strip(), f"{bad}: no remedy"

    def test_no_row_is_lost(self) -> None:
        """A bad row takes its own place and no good one with it."""
        mixed = [row for bad in self.bad_rows for row in (self.rows[0], bad)] + list(self.rows)
        results = self.results(mixed)
        assert results is not None
        assert [result.row for result in results] == list(range(1, len(mixed) + 1))
        kinds = [isinstance(result, Example) for result in results]
        assert kinds == [True, False] * len(self.bad_rows) + [True] * len(self.rows)

    def test_columns_of_another_shape_are_left_to_others(self) -> None:
        """None, not an error and not an empty list."""
        assert self.results(self.foreign_rows) is None

    def test_formatting_twice_gives_the_same_examples(self) -> None:
        """Data is formatted for the plan and again for the run."""
        assert self.results(self.rows) == self.results(self.rows)


def _require_canonical(message: Message) -> None:
    """A known role, calls by the assistant alone and with JSON for arguments, images inside the content."""
    assert message.role in ROLES
    assert isinstance(message.content, str)
    assert message.role == "assistant" or (message.thinking is None and not message.tool_calls)
    assert message.role == "tool" or message.call is None
    assert all(0 <= image.at <= len(message.content) for image in message.images)
    for call in message.tool_calls:
        assert json.loads(json.dumps(call.arguments)) == call.arguments
