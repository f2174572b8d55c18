"""What becomes of rows, asked of every format as a run does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from tunekit.testing import rows_of
from tunekit.values import BadRow, Example, Source
from tunekit_formats import Alpaca, Labelled, OpenAi, Preference, Prompts, ShareGpt, Text

Results = list[Example | BadRow]

FORMATS: dict[str, Any] = {
    "alpaca": Alpaca(),
    "sharegpt": ShareGpt(),
    "openai": OpenAi(),
    "preference": Preference(),
    "labelled": Labelled(),
    "prompt": Prompts(),
    "text": Text(),
}


def _recognise(rows: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Results]:
    opened = rows_of(rows, Source(path="data", **options))
    asked = {name: plugin.tunekit_format_data(opened) for name, plugin in FORMATS.items()}
    return {name: list(results) for name, results in asked.items() if results is not None}


def _read(rows: Sequence[Mapping[str, Any]], name: str, **options: Any) -> Results:
    return list(FORMATS[name].tunekit_format_data(rows_of(rows, Source(path="data", format=name, **options))))


@pytest.fixture(scope="session")
def recognised() -> Callable[..., dict[str, Results]]:
    """The results of all formats that recognise the rows by themselves."""
    return _recognise


@pytest.fixture(scope="session")
def read_as() -> Callable[..., Results]:
    """The results of the format that is named."""
    return _read


@pytest.fixture(scope="session")
def example_of() -> Callable[..., Example]:
    """The example that one row becomes by itself."""

    def example_of(row: Mapping[str, Any], **options: Any) -> Example:
        ((result,),) = _recognise([row], **options).values()
        assert isinstance(result, Example), result
        return result

    return example_of


@pytest.fixture(scope="session")
def told_of() -> Callable[..., str]:
    """What is said of a row that the format named cannot use."""

    def told_of(row: Mapping[str, Any], name: str, **options: Any) -> str:
        (result,) = _read([row], name, **options)
        assert isinstance(result, BadRow), result
        assert (result.row, result.where) == (1, "data, row 1")
        assert result.remedy
        return f"{result.reason}; {result.remedy}"

    return told_of
