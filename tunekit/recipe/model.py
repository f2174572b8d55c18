"""The recipe: what a user asked for, however they said it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import Field

from ..plugin import Plugin, PluginConfig
from ..values import DEFAULT_ADAPTER, Mixing, Source

Origin = Literal["default", "file", "override", "code"]


class SourceOptions(PluginConfig):
    """The options of one data source."""

    path: str = Field(
        description="file, folder, archive, address that fsspec knows, collection file, or name of a data set on a hub"
    )
    name: str | tuple[str, ...] | None = Field(
        None, description="which data sets of a collection file (datasets.yaml, dataset_info.json)"
    )
    format: str | None = Field(None, description="name of the format plugin; without it the columns are recognised")
    columns: dict[str, str] = Field({}, description="rename columns: the name the format knows -> the name in the data")
    tags: dict[str, str] = Field(
        {},
        description="names inside turns: keys role and content, roles user, assistant, system, observation, function",
    )
    subset: str | None = Field(None, description="the configuration of a hub data set, where it has several")
    revision: str | None = Field(None, description="branch, tag or commit of a hub data set")
    split: str = Field("train", description="split of a hub data set, or of a folder with one file per split")
    limit: int | None = Field(None, ge=1, strict=True, description="use only the first so many rows")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="share of this source when sources are interleaved"
    )
    folder: str | None = Field(None, description="where the files that rows name, such as images, lie")
    bad_rows: Literal["error", "drop"] = Field(
        "error", description="stop at a row that cannot be used, or count and drop it"
    )


class MixingOptions(PluginConfig):
    """How several sources become one stream, and in which order it is trained."""

    order: Literal["concatenate", "interleave"] = Field(
        "concatenate", description="one source after the other, or in turn by their weights"
    )
    until: Literal["first", "last", "each"] = Field(
        "each", description="interleave until the first source ends, the last does, or each was read once"
    )
    shuffle: bool = Field(True, description="a new random order every epoch")
    streaming: bool = Field(False, description="read while training, at constant memory; needs steps")
    buffer: int = Field(10_000, ge=1, description="examples among which a stream is shuffled")


class AdapterOptions(PluginConfig):
    """Which adapter a stage trains."""

    name: str = Field(
        default=DEFAULT_ADAPTER,
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*$",
        description="letters, digits, - and _; stages that name none share one that is called default",
    )
    start: str | None = Field(
        default=None, description="folder of a trained adapter that this one begins as; unset, it is fresh"
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
    """A stage the recipe names. `data` None means the recipe's own data, mixed as the recipe says.

    `adapter` is which one it trains, and what that begins as.
    """

    name: str
    options: Mapping[str, Any]
    key: str
    data: tuple[Source, ...] | None = None
    mixing: Mixing | None = None
    use: tuple[Use, ...] = ()
    plugin: Plugin[Any] | None = field(default=None, compare=False)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)


@dataclass(frozen=True)
class Recipe:
    """What to fine-tune, on what, with which plugins, in which stages.

    `origins` tells for each key path that was given whether a file, an override or code gave it; the rest is default.
    """

    model: str
    data: tuple[Source, ...] = ()
    mixing: Mixing = field(default_factory=Mixing)
    use: tuple[Use, ...] = ()
    stages: tuple[Stage, ...] = ()
    output: str | None = None
    seed: int = 0
    origins: Mapping[str, Origin] = field(default_factory=dict, compare=False)
    exports: tuple[Use, ...] = ()

    def without_rows(self) -> Recipe:
        """The recipe with no rows spelt out in it: they may be many, cost much to make, or never end."""
        stages = tuple(replace(stage, data=stage.data and tuple(map(_bare, stage.data))) for stage in self.stages)
        return replace(self, data=tuple(map(_bare, self.data)), stages=stages)

    def to_mapping(self) -> dict[str, Any]:
        """The recipe as plain data, ready for YAML or JSON; reading it back gives an equal recipe."""
        mapping: dict[str, Any] = {"model": self.model}
        if self.data:
            mapping["data"] = data_mapping(self.data, self.mixing)
        if self.use:
            mapping["use"] = {use.name: dict(use.options) for use in self.use}
        mapping["stages"] = [{stage.name: _stage_mapping(stage)} for stage in self.stages]
        if self.exports:
            mapping["export"] = [{use.name: dict(use.options)} for use in self.exports]
        if self.output is not None:
            mapping["output"] = self.output
        return {**mapping, "seed": self.seed}


def _bare(source: Source) -> Source:
    return source if source.rows is None else replace(source, rows=())


def data_mapping(sources: tuple[Source, ...], mixing: Mixing) -> list[dict[str, Any]] | dict[str, Any]:
    """Sources and their mixing as plain data: a list of sources where nothing is said about mixing."""
    listed = [source_mapping(source) for source in sources]
    said = {name: value for name, value in asdict(mixing).items() if value != getattr(Mixing(), name)}
    return {"sources": listed, **said} if said else listed


def source_mapping(source: Source) -> dict[str, Any]:
    """A source as plain data, without the options left at their defaults."""
    if source.path is None:
        given = source.rows() if callable(source.rows) else source.rows
        return {"rows": [dict(row) for row in given or ()], **_source_options(source)}
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
    names = [name for name in SourceOptions.model_fields if name not in ("path", "name")]
    values = {name: getattr(source, name) for name in names if getattr(source, name) != getattr(defaults, name)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _stage_mapping(stage: Stage) -> dict[str, Any]:
    mapping = dict(stage.options)
    if stage.data is not None:
        mapping["data"] = data_mapping(stage.data, stage.mixing or Mixing())
    if stage.use:
        mapping["use"] = {use.name: dict(use.options) for use in stage.use}
    if stage.adapter != AdapterOptions():
        said = stage.adapter.model_dump(exclude_defaults=True)
        mapping["adapter"] = said["name"] if list(said) == ["name"] else said
    return mapping
