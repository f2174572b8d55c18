"""Build a Recipe from plain data or from Python objects; everything wrong is gathered, then said at once."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..catalog import EXPORTS, Catalog
from ..errors import Problem, RecipeError, nearest
from ..local import LocalPlugin
from ..plugin import Plugin
from ..values import Mixing, Source
from .collections import is_collection, open_collection
from .model import AdapterOptions, MixingOptions, Origin, Recipe, SourceOptions, Stage, Use, leaves
from .overrides import apply_overrides_
from .reading import read_file
from .validation import validate

KEYS = ("model", "data", "use", "stages", "export", "output", "seed")
STAGE_KEYS = ("data", "use", "adapter")


def from_file(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file with overrides over it. Paths not found from here are looked up beside the file."""
    return from_mapping(read_file(path), overrides, beside=Path(path).parent)


def from_mapping(mapping: Mapping[str, Any], overrides: Iterable[str] = (), beside: Path | None = None) -> Recipe:
    """Build a recipe from plain data. RecipeError tells every unknown key and wrong type with its key path."""
    problems: list[Problem] = []
    long = _long_form(mapping, problems)
    origins: dict[str, Origin] = {path: "file" for path, _ in leaves(long)}
    overridden = apply_overrides_(long, overrides)
    if overridden:
        long = _long_form(long, [])
        origins = {path: origins.get(path, "override") for path, _ in leaves(long)}
        for path in list(origins):
            if any(path == key or path.startswith(key + ".") for key in overridden):
                origins[path] = "override"
    recipe = _build(long, origins, problems, beside)
    if problems:
        raise RecipeError(problems)
    return recipe


def from_code(
    model: str,
    data: Any = None,
    use: Sequence[Plugin[Any] | str] | Mapping[str, Any] = (),
    stages: Sequence[Plugin[Any] | str | Mapping[str, Any]] = (),
    output: str | Path | None = None,
    seed: int = 0,
    catalog: Catalog | None = None,
    export: Sequence[Plugin[Any] | str | Mapping[str, Any]] = (),
) -> Recipe:
    """Build a recipe from Python: plugin objects, names, or the same plain data as a file."""
    catalog = catalog or Catalog.discover()
    problems: list[Problem] = []
    sources, mixing = _data(_long_data(data, "data", problems), "data", problems, None)
    uses = _uses_from_code(use, "use", catalog, problems)
    built = tuple(_stage_from_code(stage, index, catalog, problems) for index, stage in enumerate(_as_list(stages)))
    exports = exports_from_code(export, problems)
    if problems:
        raise RecipeError(problems)
    written = None if output is None else str(output)
    recipe = Recipe(str(model), sources, mixing, uses, built, written, seed, exports=exports)
    origins: dict[str, Origin] = {path: "code" for path, _ in leaves(recipe.without_rows().to_mapping())}
    return replace(recipe, origins=origins)


def _long_form(mapping: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Spell out the short forms: a data path alone, a plugin or stage without options."""
    long: dict[str, Any] = {key: copy.deepcopy(value) for key, value in mapping.items()}
    long["data"] = _long_data(long.get("data"), "data", problems)
    long["use"] = _long_uses(long.get("use"), "use", problems)
    long["stages"] = [
        _long_stage(stage, f"stages.{n}", problems) for n, stage in enumerate(_as_list(long.get("stages")))
    ]
    long["export"] = [
        _long_stage(export, f"export.{n}", problems, "export", "merged: {}")
        for n, export in enumerate(_as_list(long.get("export")))
    ]
    return long


Long = list[dict[str, Any]] | dict[str, Any]
"""Data spelt out: a list of sources, or a mapping of `sources` and how they are mixed."""


def _long_data(data: Any, key: str, problems: list[Problem]) -> Long:
    if isinstance(data, Mapping) and "sources" in data:
        return {**data, "sources": _long_sources(data["sources"], f"{key}.sources", problems)}
    return _long_sources(data, key, problems)


def _long_sources(data: Any, key: str, problems: list[Problem]) -> list[dict[str, Any]]:
    if _is_rows(data):
        return [{"rows": data}]
    result: list[dict[str, Any]] = []
    for index, item in enumerate(_as_list(data)):
        if isinstance(item, (str, Path)):
            result.append({"path": str(item)})
        elif isinstance(item, Mapping) and item and "rows" not in item and all(map(_is_rows, item.values())):
            message = f"is a {type(item).__name__} of several data sets ({', '.join(map(str, item))})"
            problems.append(Problem(f"{key}.{index}", message, f"give one: data[{next(iter(item))!r}]"))
        elif isinstance(item, Mapping):
            result.append(dict(item))
        elif _is_rows(item):
            result.append({"rows": item})
        else:
            problems.append(
                Problem(f"{key}.{index}", f"{item!r} is no data source", "give a path, or a mapping with `path`")
            )
    return result


def _long_uses(use: Any, key: str, problems: list[Problem]) -> dict[str, Any]:
    if use is None:
        return {}
    if isinstance(use, Mapping):
        return {str(name): {} if options is None else options for name, options in use.items()}
    problems.append(
        Problem(key, f"is a {type(use).__name__}, not a mapping of plugins", "write `use: {lora: {rank: 8}}`")
    )
    return {}


def _long_stage(
    stage: Any, key: str, problems: list[Problem], noun: str = "stage", example: str = "sft: {epochs: 1}"
) -> dict[str, Any]:
    """A stage, or an export, as a mapping from its name to its options."""
    if isinstance(stage, str):
        return {stage: {}}
    if isinstance(stage, Mapping) and len(stage) == 1:
        ((name, options),) = stage.items()
        return {str(name): {} if options is None else options}
    problems.append(Problem(key, f"{stage!r} is not one {noun}", f"write `- {example}`, one name to an item"))
    return {}


def _build(long: dict[str, Any], origins: dict[str, Origin], problems: list[Problem], beside: Path | None) -> Recipe:
    _unknown(long, KEYS, "", problems)
    model = _text(long, "model", problems, required="name a hub id, a folder, or pkg:<python package>")
    output = _text(long, "output", problems)
    seed = long.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        problems.append(Problem("seed", f"is {seed!r}, not a whole number of 0 or more", "write `seed: 0`"))
    stages = [_stage(stage, index, problems, beside) for index, stage in enumerate(long["stages"]) if stage]
    sources, mixing = _data(long["data"], "data", problems, beside)
    exports = [_uses(export, f"export.{n}", problems, beside) for n, export in enumerate(long["export"])]
    return Recipe(
        model=_beside(model or "", beside),
        data=sources,
        mixing=mixing,
        use=_uses(long["use"], "use", problems, beside),
        stages=tuple(stages),
        output=output,
        seed=seed,
        origins=origins,
        exports=tuple(use for uses in exports for use in uses),
    )


def _stage(stage: dict[str, Any], index: int, problems: list[Problem], beside: Path | None) -> Stage:
    ((name, options),) = stage.items()
    name = _plugin_beside(name, beside)
    key = f"stages.{index}.{name}"
    if not isinstance(options, Mapping):
        problems.append(Problem(key, f"is {options!r}, not a mapping of options", f"write `- {name}: {{epochs: 1}}`"))
        options = {}
    own = {option: value for option, value in options.items() if option not in STAGE_KEYS}
    data, mixing = None, None
    if options.get("data") is not None:
        data, mixing = _data(_long_data(options["data"], f"{key}.data", problems), f"{key}.data", problems, beside)
    use = _uses(_long_uses(options.get("use"), f"{key}.use", problems), f"{key}.use", problems, beside)
    return Stage(name, own, key, data, mixing, use, adapter=_adapter(options.get("adapter"), key, problems, beside))


def _adapter(said: Any, key: str, problems: list[Problem], beside: Path | None) -> AdapterOptions:
    """The adapter of a stage: its name alone, or a mapping."""
    given = {"name": said} if isinstance(said, str) else said
    if given is not None and not isinstance(given, Mapping):
        problems.append(Problem(f"{key}.adapter", f"is {said!r}, no name of an adapter", "write `adapter: reward`"))
    options = validate(AdapterOptions, given, f"{key}.adapter", problems) if isinstance(given, Mapping) else None
    if options is None:
        return AdapterOptions()
    return options if options.start is None else options.model_copy(update={"start": _beside(options.start, beside)})


def _uses(use: Mapping[str, Any], key: str, problems: list[Problem], beside: Path | None = None) -> tuple[Use, ...]:
    found = []
    for written, options in use.items():
        name = _plugin_beside(written, beside)
        if isinstance(options, Mapping):
            found.append(Use(name, dict(options), f"{key}.{name}"))
        else:
            problems.append(
                Problem(f"{key}.{name}", f"is {options!r}, not a mapping of options", f"write `{name}: {{}}`")
            )
    return tuple(found)


def _data(long: Long, key: str, problems: list[Problem], beside: Path | None) -> tuple[tuple[Source, ...], Mixing]:
    if not isinstance(long, dict):
        return _sources(long, key, problems, beside), Mixing()
    said = {name: value for name, value in long.items() if name != "sources"}
    options = validate(MixingOptions, said, key, problems)
    sources = _sources(long["sources"], f"{key}.sources", problems, beside)
    return sources, Mixing() if options is None else Mixing(**options.model_dump())


def _sources(items: list[dict[str, Any]], key: str, problems: list[Problem], beside: Path | None) -> tuple[Source, ...]:
    sources: list[Source] = []
    for index, item in enumerate(items):
        where = key if len(items) == 1 else f"{key}.{index}"
        for each in _expanded(item, where, problems, beside):
            source = _source(each, where, problems, beside)
            sources.extend([source] if source else [])
    return tuple(sources)


def _expanded(item: dict[str, Any], where: str, problems: list[Problem], beside: Path | None) -> list[dict[str, Any]]:
    """The sources that an item stands for: several where it names data sets of a collection."""
    path, named = item.get("path"), item.get("name") or []
    names = [named] if isinstance(named, str) else named
    readable = isinstance(path, str) and isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)
    if not readable or not is_collection(Path(_beside(str(path), beside))):
        return [item]
    options = {name: value for name, value in item.items() if name not in ("path", "name")}
    try:
        return open_collection(Path(_beside(str(path), beside)), names, options, where)
    except RecipeError as error:
        problems.extend(error.problems)
        return []


def _source(item: dict[str, Any], where: str, problems: list[Problem], beside: Path | None) -> Source | None:
    rows = item.get("rows") if "path" not in item else None
    named = {name: value for name, value in item.items() if name != "rows" or rows is None}
    options = validate(SourceOptions, {"path": "", **named} if rows is not None else named, where, problems)
    if options is None:
        return None
    if options.name is not None:
        remedy = "name a datasets.yaml or a dataset_info.json, or leave `name` out"
        problems.append(Problem(f"{where}.name", f"{options.path} is no collection of data sets", remedy))
    path = None if rows is not None else _beside(options.path, beside)
    rows = tuple(rows) if isinstance(rows, list) else rows
    return Source(path=path, rows=rows, key=where, **options.model_dump(exclude={"path", "name"}))


def _uses_from_code(use: Any, key: str, catalog: Catalog, problems: list[Problem]) -> tuple[Use, ...]:
    if isinstance(use, Mapping):
        return _uses(_long_uses(use, key, problems), key, problems)
    found = []
    for index, item in enumerate(_as_list(use)):
        if isinstance(item, str):
            found.append(Use(item, {}, f"{key}.{item}"))
        elif isinstance(item, Plugin):
            name = plugin_name(item, catalog)
            found.append(Use(name, _options(item), f"{key}.{name}", item))
        else:
            problems.append(
                Problem(f"{key}.{index}", f"{item!r} is no plugin", "give Lora(rank=8), or the name 'lora'")
            )
    twice = {item.name for item in found if [other.name for other in found].count(item.name) > 1}
    problems.extend(Problem(f"{key}.{name}", "is given twice", "keep one of the two") for name in sorted(twice))
    return tuple(found)


def _stage_from_code(stage: Any, index: int, catalog: Catalog, problems: list[Problem]) -> Stage:
    if isinstance(stage, Plugin):
        name = plugin_name(stage, catalog)
        return Stage(name, _options(stage), f"stages.{index}.{name}", plugin=stage)
    long = _long_stage(stage, f"stages.{index}", problems)
    return _stage(long, index, problems, None) if long else Stage("", {}, f"stages.{index}")


def exports_from_code(exports: Any, problems: list[Problem]) -> tuple[Use, ...]:
    """Exports as a recipe holds them, from plugin objects, names, and mappings of a name to options."""
    found: list[Use] = []
    for index, item in enumerate(_as_list(exports)):
        key = f"export.{index}"
        if isinstance(item, Plugin):
            name = plugin_name(item, Catalog.discover(group=EXPORTS))
            found.append(Use(name, _options(item), f"{key}.{name}", item))
        else:
            found += _uses(_long_stage(item, key, problems, "export", "merged: {}"), key, problems)
    return tuple(found)


def plugin_name(plugin: Plugin[Any], catalog: Catalog) -> str:
    """The name a plugin object is installed under, or its class name in lower case where no distribution lists it."""
    entry = catalog.entry_of(type(plugin))
    return entry.name if entry else type(plugin).__name__.lower()


def _options(plugin: Plugin[Any]) -> dict[str, Any]:
    return dict(plugin.config.model_dump(mode="json", exclude_unset=True))


def _text(mapping: Mapping[str, Any], key: str, problems: list[Problem], required: str = "") -> str | None:
    value = mapping.get(key)
    if value is None and required:
        problems.append(Problem(key, "is missing", required))
    elif value is not None and not isinstance(value, (str, Path)):
        problems.append(Problem(key, f"is {value!r}, not text", "put it in quotes"))
        return None
    return None if value is None else str(value)


def _unknown(mapping: Mapping[str, Any], known: Sequence[str], key: str, problems: list[Problem]) -> None:
    for name in mapping:
        if name not in known:
            close = nearest(str(name), known)
            remedy = f"did you mean {close!r}?" if close else f"the keys are {', '.join(known)}"
            problems.append(Problem(f"{key}{name}", "is no key of a recipe", remedy))


def _beside(path: str, folder: Path | None) -> str:
    """A relative path that is not found from here but exists beside the recipe file is meant from there."""
    if folder is None or not path or os.path.exists(path) or not os.path.exists(folder / path):
        return path
    return os.path.normpath(folder / path)


def _plugin_beside(name: str, folder: Path | None) -> str:
    """The same for the file of a plugin of the user's own."""
    local = LocalPlugin.parse(name)
    return name if local is None else str(replace(local, path=Path(_beside(str(local.path), folder))))


def _is_rows(value: Any) -> bool:
    """Whether this is data rather than the name of some: rows, something that gives them, such as a
    `datasets.Dataset`, or a function that starts a pass over them."""
    if isinstance(value, (str, Path, Mapping)) or value is None:
        return False
    if isinstance(value, (list, tuple)):
        return bool(value) and all(
            isinstance(item, Mapping) and "path" not in item and "rows" not in item for item in value
        )
    return hasattr(value, "__iter__") or callable(value)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
