"""Saying what is wrong with a source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tunekit.errors import DataError, Problem
from tunekit.values import Source

_KINDS: tuple[tuple[type, str], ...] = (
    (str, "text"),
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number"),
    (Mapping, "an object"),
    (list, "a list"),
    (tuple, "a list"),
    (bytes, "bytes"),
)


def data_error(where: str, message: str, remedy: str = "") -> DataError:
    """An error of one problem."""
    return DataError([Problem(where, message, remedy)])


def place(source: Source) -> str:
    """Where the recipe names a source, and which one it is."""
    return source.name if source.path is None else f"{source.key} ({source.path})"


def kind(value: object) -> str:
    """What a value is, in words of the data: `text`, `a list`, `null`."""
    if value is None:
        return "null"
    return next((name for base, name in _KINDS if isinstance(value, base)), type(value).__name__)


def listed(names: Iterable[str]) -> str:
    """Names in a sentence, or `none`."""
    return ", ".join(names) or "none"
