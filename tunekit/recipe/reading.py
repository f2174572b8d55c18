"""Read recipe files into plain data, safely."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import Problem, RecipeError

MERGE = "tag:yaml.org,2002:merge"
"""The key `<<`, which takes in another mapping."""


class _Loader(yaml.SafeLoader):
    """YAML without tags that make objects, where a key given twice is an error and `1e-4` is a number."""

    def construct_document(self, node: yaml.Node) -> Any:
        """Make each value whole before what holds it, so that one which holds itself is found."""
        return self.construct_object(node, deep=True)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE or not isinstance(key_node, yaml.ScalarNode):
                continue
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
    value = parse(text, str(path), is_json=path.suffix == ".json")
    if not isinstance(value, dict):
        kind = "empty" if value is None else f"a {type(value).__name__}"
        raise RecipeError(
            [Problem(str(path), f"the recipe is {kind}, not a mapping", "start with `model:` and `stages:`")]
        )
    return value


def parse(text: str, where: str, is_json: bool = False) -> Any:
    """Parse text into plain data; `where` names it in messages. RecipeError tells the line."""
    mend = "mend the JSON" if is_json else "mend the YAML"
    try:
        return json.loads(text, object_pairs_hook=_unique) if is_json else parse_yaml(text)
    except json.JSONDecodeError as error:
        raise RecipeError([Problem(f"{where}, line {error.lineno}", error.msg, mend)]) from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError([Problem(where + line, error.problem or str(error), mend)]) from error
    except (ValueError, yaml.YAMLError) as error:
        raise RecipeError([Problem(where, str(error), mend)]) from error
    except RecursionError as error:
        raise RecipeError([Problem(where, "is nested too deeply", mend)]) from error


def parse_yaml(text: str) -> Any:
    """Parse YAML into plain data only. Raises YAMLError, ValueError and RecursionError."""
    return yaml.load(text, Loader=_Loader)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return values
