"""The recipe: what a user asked for, however they said it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from ..plugin import Plugin, PluginConfig
from ..values import Source

Origin = Literal["default", "file", "override", "code"]


class SourceOptions(PluginConfig):
    """The options of one data source."""

    path: str = Field(description="file, folder, or name of a data set on a hub")
    format: str | None = Field(None, description="name of the format plugin; without it the columns are recognised")
    columns: dict[str, str] = Field({}, description="rename columns: the name the format knows -> the name in the data")
    split: str = Field("train", description="split of a hub data set, or of a folder with one file per split")
    limit: int | None = Field(None, ge=1, description="use only the first so many rows")
    bad_rows: Literal["error", "drop"] = Field(
        "error", description="stop at a row that cannot be used, or count and drop it"
    )


@dataclass(frozen=True)
class Use:
    """A plugin the recipe names, with the options it was given; `plugin` is the object itself when made in Python."""

    name: str
    options: Mapping[str, Any]
    key: str
    plugin: Plugin[Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Stage:
    """A stage the recipe names. `data` None means the recipe's own data."""

    name: str
    options: Mapping[str, Any]
    key: str
    data: tuple[Source, ...] | None = None
    use: tuple[Use, ...] = ()
    plugin: Plugin[Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Recipe:
    """What to fine-tune, on what, with which plugins, in which stages.

    `origins` tells for each key path that was given whether a file, an override or code gave it; the rest is default.
    """

    model: str
    data: tuple[Source, ...] = ()
    use: tuple[Use, ...] = ()
    stages: tuple[Stage, ...] = ()
    output: str | None = None
    seed: int = 0
    origins: Mapping[str, Origin] = field(default_factory=dict, compare=False)

    def to_mapping(self) -> dict[str, Any]:
        """The recipe as plain data, ready for YAML or JSON; reading it back gives an equal recipe."""
        mapping: dict[str, Any] = {"model": self.model}
        if self.data:
            mapping["data"] = [source_mapping(source) for source in self.data]
        if self.use:
            mapping["use"] = {use.name: dict(use.options) for use in self.use}
        mapping["stages"] = [{stage.name: _stage_mapping(stage)} for stage in self.stages]
        if self.output is not None:
            mapping["output"] = self.output
        return {**mapping, "seed": self.seed}


def source_mapping(source: Source) -> dict[str, Any]:
    """A source as plain data, without the options left at their defaults."""
    if source.path is None:
        return {"rows": [dict(row) for row in source.rows or ()], **_source_options(source)}
    return {"path": source.path, **_source_options(source)}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested mappings and lists with its key path; an empty mapping is a leaf too."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and not all(isinstance(item, (str, int, float)) for item in value):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{index}")
    else:
        yield path, value


def _source_options(source: Source) -> dict[str, Any]:
    defaults = Source()
    names = ("format", "columns", "split", "limit", "bad_rows")
    values = {name: getattr(source, name) for name in names if getattr(source, name) != getattr(defaults, name)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _stage_mapping(stage: Stage) -> dict[str, Any]:
    mapping = dict(stage.options)
    if stage.data is not None:
        mapping["data"] = [source_mapping(source) for source in stage.data]
    if stage.use:
        mapping["use"] = {use.name: dict(use.options) for use in stage.use}
    return mapping
