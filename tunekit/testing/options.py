"""The options of a plugin, those inside groups included, and the evidence that they act."""

from __future__ import annotations

import ast
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ..plugin import Plugin

F = TypeVar("F", bound=Callable[..., Any])


def shows(*options: str) -> Callable[[F], F]:
    """Mark a test as evidence that these options act: `@shows("batch.rows", "rank")`.

    Such a test compares what training comes to, weights, losses or a measured effect, with another setting of the
    option, a closed form or another implementation; it never reads back the config. `evidence_in` finds the marks, and
    `shown_by` what a test is marked with.
    """

    def mark(test: F) -> F:
        test.__dict__.setdefault("shows", []).extend(options)
        return test

    assert options, "name the options that the test shows acting"
    return mark


def shown_by(test: object) -> tuple[str, ...]:
    """The options that a test function is marked to show."""
    return tuple(getattr(test, "shows", ()))


def configs_of(config: type[BaseModel]) -> list[type[BaseModel]]:
    """A config class and every config class inside it, each once."""
    found = [config]
    for each in found:
        found += [inner for field in each.model_fields.values() for inner in _groups(field.annotation)
                  if inner not in found]  # fmt: skip
    return found


def options_with_owners(plugin: type[Plugin[Any]]) -> list[tuple[str, str]]:
    """The key paths of all options of a plugin, each with the package whose class declares it."""
    return [(path, _package(owner)) for path, owner in _paths(plugin.config_type())]


def own_options(plugin: type[Plugin[Any]]) -> list[str]:
    """The key paths of the options that the plugin's own distribution brings, such as `rank` and `batch.rows`.

    Options inherited from, or grouped in, a config class of another package are documented there.
    """
    return [path for path, owner in _paths(plugin.config_type()) if _package(owner) == _package(plugin)]


def evidence_in(folder: Path) -> dict[str, list[str]]:
    """The options that the test files of a folder show acting, each with the tests that do.

    Read from their source, without importing them: tests marked with `shows`; mappings called `EVIDENCE` from options
    to what shows them, that a test of all options goes through; and functions that such a test registers there by
    `@evidence("option")`, or by `@evidence(Stage, "option")` for the options of one class, told as `Stage:option`.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for option, test in _evidence(node):
                found.setdefault(option, []).append(f"{path.name}::{test}")
    return found


def _evidence(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
        marks = (mark for mark in node.decorator_list if isinstance(mark, ast.Call))
        yield from ((option, node.name) for mark in marks if _calls(mark, "shows") for option in _texts(mark))
    if isinstance(node, ast.Call) and _calls(node, "evidence"):
        classes = [each.id for each in node.args if isinstance(each, ast.Name) and each.id[0].isupper()]
        of = "".join(f"{name}:" for name in classes)  # in a loop over classes: of all of them
        yield from ((f"{of}{option}", f"line {node.lineno}") for option in _texts(node))
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    value = getattr(node, "value", None)
    if any(isinstance(each, ast.Name) and each.id == "EVIDENCE" for each in targets) and isinstance(value, ast.Dict):
        for key, shown in zip(value.keys, value.values, strict=True):
            if key is not None:
                yield ast.literal_eval(key), ast.unparse(shown)


def _calls(call: ast.Call, name: str) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == name


def _texts(call: ast.Call) -> list[str]:
    return [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def _paths(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type]]:
    for name, field in config.model_fields.items():
        groups = _groups(field.annotation)
        if not groups:
            yield prefix + name, _owner(config, name)
        for group in groups:
            yield from _paths(group, f"{prefix}{name}.")


def _owner(config: type, name: str) -> type:
    """The class that declares a field."""
    return next(base for base in config.__mro__ if name in vars(base).get("__annotations__", {}))


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _groups(annotation: Any) -> list[type[BaseModel]]:
    """The config classes an annotation holds, inside unions and containers too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [group for argument in typing.get_args(annotation) for group in _groups(argument)]
