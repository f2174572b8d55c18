"""Values of JSON: read from text, or checked where they come as objects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from ..problems import kind
from .checks import Unusable, text

DEEPEST = 100
"""Levels of lists and objects inside each other; what is deeper is not meant."""


def parse(written: str, name: str, place: str = "") -> Any:
    """Read a JSON text. Raises Unusable where it is none."""
    try:
        return json.loads(written, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Unusable(f"{name} is not JSON", f"repair it, or leave the row out ({why})", place) from error


def plain(value: Any, name: str, place: str = "", depth: int = 0) -> Any:
    """Copy a value of JSON, with lists for tuples and dicts for mappings. Raises Unusable for any other."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return text(value, name, blank=True, place=place)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if depth == DEEPEST:
        raise Unusable(f"{name} is nested more than {DEEPEST} levels deep", "leave the row out", place)
    if isinstance(value, (list, tuple)):
        return [plain(item, name, place, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return {_key(key, name, place): plain(item, name, place, depth + 1) for key, item in value.items()}
    found = "a number that is not finite" if isinstance(value, float) else kind(value)
    raise Unusable(f"{name} holds {found}, which JSON does not know", "write it as text, or leave the row out", place)


def _key(key: Any, name: str, place: str) -> str:
    return text(key, f"a key of {name}", blank=True, place=place)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
