"""Lay `key.path=value` overrides from the command line over a recipe in its long form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from ..errors import Problem, RecipeError
from .reading import parse_yaml


def apply_overrides_(mapping: dict[str, Any], overrides: Iterable[str]) -> list[str]:
    """Set each `key.path=value` in place; values are read as YAML. Returns the full key paths that were set.

    Items of a list are named by index; a stage also by its name (`stages.sft.epochs=2`), and the only data source by
    nothing at all (`data.limit=100`). Raises RecipeError with all malformed overrides.
    """
    problems, paths = [], []
    for override in overrides:
        path, sign, text = override.partition("=")
        try:
            if not sign or not path.strip():
                raise ValueError("this override has no key and `=`")
            paths.append(_set_(mapping, path.strip().split("."), parse_yaml(text)))
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            problems.append(Problem(override, str(error), "write it as key.path=value, such as use.lora.rank=8"))
    if problems:
        raise RecipeError(problems)
    return paths


def _set_(mapping: dict[str, Any], keys: list[str], value: Any) -> str:
    holder: Any = mapping
    path: list[str] = []
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(holder, list):
            index, stays = _index(holder, key, path)
            path.append(str(index))
            if not stays:
                holder = holder[index]
                if last:
                    raise ValueError(f"{'.'.join(keys)} is a whole item of a list; set one of its keys")
                continue
            holder = holder[index]
        if not isinstance(holder, dict):
            raise ValueError(f"{'.'.join(path)} is {holder!r}, which has no keys")
        path.append(key)
        if last:
            holder[key] = value
        else:
            holder[key] = holder = {} if holder.get(key) is None else holder[key]
    return ".".join(path)


def _index(items: list[Any], key: str, path: list[str]) -> tuple[int, bool]:
    """Find the item `key` speaks of, and whether `key` is also a key inside it."""
    if key.isdigit():
        if int(key) >= len(items):
            raise ValueError(f"{'.'.join(path)} has {len(items)} items, counted from 0; there is no item {key}")
        return int(key), False
    holding = [index for index, item in enumerate(items) if isinstance(item, dict) and key in item]
    if path == ["data"] and len(items) == 1:
        return 0, True
    if len(holding) == 1:
        return holding[0], True
    names = ", ".join(f"{index}: {next(iter(item), '')}" for index, item in enumerate(items) if isinstance(item, dict))
    raise ValueError(f"{key!r} names {'several' if holding else 'none'} of the items of {'.'.join(path)} ({names})")
