"""Named collections of data sets: a file that tells for each name where its data lies and how it is read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import Problem, RecipeError, nearest
from ..values import Source
from .llama_factory import source_options
from .reading import parse

LLAMA_FACTORY = "dataset_info.json"
OWN = ("datasets.yaml", "datasets.yml", "datasets.json")
"""The names that make a file a collection."""

_KEYS = tuple(sorted({each.name for each in fields(Source)} - {"rows", "key"}))


def is_collection(path: Path) -> bool:
    """Whether a path is a collection file by its name, or a folder that holds one.

    The `dataset_info.json` that `datasets` writes beside its Arrow files tells of one data set and is none.
    """
    if os.path.isdir(path):  # unlike `Path.is_dir`, false for a path that cannot be
        return any(is_collection(path / name) for name in (*OWN, LLAMA_FACTORY))
    if path.name not in (*OWN, LLAMA_FACTORY) or not os.path.isfile(path):
        return False
    return path.name in OWN or not _is_beside_arrow(path.parent)


def open_collection(path: Path, names: Sequence[str], options: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The options of a source for each name: those of the collection, with `options` of the recipe over them.

    `path` is the file or its folder; relative paths in it start beside it. `key` is where the recipe names it. Raises
    RecipeError with all problems: an unreadable file, names it does not have, entries that cannot be read as they say.
    """
    problems: list[Problem] = []
    file = _file(path, key)
    entries = _entries(file)
    sources = []
    for name in names:
        if name not in entries:
            problems.append(_unknown(name, file, entries, key))
        elif (source := _source(name, entries[name], file, problems)) is not None:
            sources.append({**source, **options})
    if not names:
        remedy = f"name some with `name:`; there are {', '.join(entries) or 'none'}"
        problems.append(Problem(key, f"{file} is a collection of data sets", remedy))
    if problems:
        raise RecipeError(problems)
    return sources


def _is_beside_arrow(folder: Path) -> bool:
    return (folder / "state.json").exists() or next(folder.glob("*.arrow"), None) is not None


def _file(path: Path, key: str) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in (*OWN, LLAMA_FACTORY) if is_collection(path / name)]
    if len(found) > 1:
        raise RecipeError(
            [Problem(key, f"{path} holds {' and '.join(file.name for file in found)}", "name one of them")]
        )
    return found[0] if found else path / OWN[0]


def _entries(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError([Problem(str(file), f"cannot be read: {reason}", "check the path")]) from error
    entries = parse(text, str(file), is_json=file.suffix == ".json")
    if not isinstance(entries, Mapping):
        message = f"is a {type(entries).__name__}, expected a mapping of names to data sets"
        raise RecipeError([Problem(str(file), message, "write `name: {path: rows.json}`")])
    return {str(name): entry for name, entry in entries.items()}


def _unknown(name: str, file: Path, entries: Mapping[str, Any], key: str) -> Problem:
    close = nearest(name, entries)
    there = f"there are {', '.join(entries) or 'none'}"
    return Problem(
        f"{key}.name", f"{file} has no data set {name!r}", f"did you mean {close!r}? {there}" if close else there
    )


def _source(name: str, entry: Any, file: Path, problems: list[Problem]) -> dict[str, Any] | None:
    """The options of one entry; what is wrong with it is added to `problems`."""
    where = f"{file}, {name}"
    if file.name == LLAMA_FACTORY:
        return source_options(entry, file.parent, where, problems)
    options = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(options, Mapping):
        problems.append(Problem(where, f"is {entry!r}, not a data set", "write `name: {path: rows.json}`"))
        return None
    unknown = [str(option) for option in options if option not in _KEYS]
    for option in unknown:
        close = nearest(option, _KEYS)
        remedy = f"did you mean {close!r}?" if close else f"the options are {', '.join(_KEYS)}"
        problems.append(Problem(f"{where}.{option}", "is not an option", remedy))
    if not isinstance(options.get("path"), str):
        problems.append(
            Problem(f"{where}.path", "is missing" if "path" not in options else "is not text", "name a file")
        )
        return None
    source = {**options, "path": _beside(options["path"], file.parent)}
    if isinstance(source.get("folder"), str) and (file.parent / source["folder"]).is_dir():
        source["folder"] = str(file.parent / source["folder"])
    return source


def _beside(path: str, folder: Path) -> str:
    """A path as it is meant from the collection file; addresses, and names that may be on a hub, as they are."""
    if "://" in path or path.startswith(("/", "~")):
        return path
    owner, slash, _ = path.partition("/")
    return path if slash and not (folder / owner).exists() else str(folder / path)
