"""What options the installed TRL knows, read from its source: a plan imports no torch, and TRL imports it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

TYPES = {"Any": Any}


@cache
def installed_options(module: str, name: str) -> Mapping[str, Any]:
    """The types of the options that a config class of TRL declares itself, by their names."""
    spec = find_spec("trl")
    places = spec.submodule_search_locations if spec is not None else None
    assert places, "TRL is a dependency"
    path = Path(places[0], "trainer", f"{module}.py")
    classes = (node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef))
    (found,) = (node for node in classes if node.name == name)
    return {
        node.target.id: _type(ast.unparse(node.annotation))
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def misfit(value: Any, kind: Any) -> str:
    """Why a value is not of a type; empty where it is."""
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        return error.errors()[0]["msg"].lower()
    return ""


def _type(annotation: str) -> Any:
    """The type that an annotation made of builtins means; anything where it names others."""
    try:
        return eval(annotation, {**TYPES})
    except NameError:
        return Any
