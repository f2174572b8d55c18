"""The options of a plugin, those inside groups included."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from ..plugin import Plugin


def configs_of(config: type[BaseModel]) -> list[type[BaseModel]]:
    """A config class and every config class inside it, each once."""
    found = [config]
    for each in found:
        found += [inner for field in each.model_fields.values() for inner in _groups(field.annotation)
                  if inner not in found]  # fmt: skip
    return found


def own_options(plugin: type[Plugin[Any]]) -> list[str]:
    """The key paths of the options that the plugin's own distribution brings, such as `rank` and `batch.rows`.

    Options inherited from, or grouped in, a config class of another package are documented there.
    """
    return [path for path, owner in _paths(plugin.config_type()) if _package(owner) == _package(plugin)]


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
