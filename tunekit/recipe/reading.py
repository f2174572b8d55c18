"""Read recipe files into plain data, safely."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import Problem, RecipeError


class _Loader(yaml.SafeLoader):
    """YAML without tags that make objects, where a key given twice is an error and `1e-4` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a recipe file. JSON where the name ends in `.json`, else YAML. RecipeError names file and line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError([Problem(str(path), "no such recipe file", "check the path")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(str(path), f"cannot be read: {error}", "give a text file in UTF-8")]) from error
    return read_text(text, str(path), is_json=path.suffix == ".json")


def read_text(text: str, where: str, is_json: bool = False) -> dict[str, Any]:
    """Read a recipe from text; `where` names it in messages."""
    try:
        value = json.loads(text, object_pairs_hook=_unique) if is_json else parse_yaml(text)
    except json.JSONDecodeError as error:
        raise RecipeError([Problem(f"{where}, line {error.lineno}", error.msg, "mend the JSON")]) from error
    except ValueError as error:
        raise RecipeError([Problem(where, str(error), "keep one of the two")]) from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError([Problem(where + line, error.problem or str(error), "mend the YAML")]) from error
    if not isinstance(value, dict):
        kind = "empty" if value is None else f"a {type(value).__name__}"
        raise RecipeError([Problem(where, f"the recipe is {kind}, not a mapping", "start with `model:` and `stages:`")])
    return value


def parse_yaml(text: str) -> Any:
    """Parse YAML into plain data only."""
    return yaml.load(text, Loader=_Loader)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"key {twice[0]!r} is given twice")
    return dict(pairs)
