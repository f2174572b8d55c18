"""A folder of files: those of one split, sorted by name, read one after the other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from tunekit.values import Source

from .files import KINDS, open_file
from .problems import data_error, listed
from .tables import Record, Table

SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
"""Words at the start of a file's name that mark its split: `train.jsonl`, `test-00000-of-00002.parquet`."""


def open_folder(folder: Path, source: Source) -> Table:
    """Open the files of one split. Raises DataError: none, of several kinds, or with different columns."""
    paths = _split(_files(folder, source), source)
    tables = [open_file(path, f"{source.path}/{path.name}".replace("//", "/"), source.key) for path in paths]
    _require_same_columns(paths, tables, source)

    def read() -> Iterator[Record]:
        for table in tables:
            yield from table.read()

    digest = hashlib.sha256()
    for path, table in zip(paths, tables, strict=True):
        digest.update(f"{path.name}\n{table.fingerprint}\n".encode())
    columns = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    return Table(columns, read, digest.hexdigest(), fixed=tables[0].fixed)


def _files(folder: Path, source: Source) -> list[Path]:
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in KINDS and not path.name.startswith((".", "_"))
    )
    if not paths:
        raise data_error(source.key, f"the folder {source.path!r} has no data files", f"put {', '.join(KINDS)} there")
    kinds = {KINDS[path.suffix.lower()]: path for path in paths}
    if len(kinds) > 1:
        some = listed(path.name for path in kinds.values())
        raise data_error(
            source.key, f"the folder {source.path!r} mixes kinds of files ({some})", "name the files one by one"
        )
    return paths


def _split(paths: list[Path], source: Source) -> list[Path]:
    """The files of the split asked for; files whose names tell no split are all `train`."""
    splits = [_split_of(path) for path in paths]
    if not any(splits):
        splits = ["train"] * len(paths)
    chosen = [path for path, split in zip(paths, splits, strict=True) if split == source.split]
    unknown = [path.name for path, split in zip(paths, splits, strict=True) if split is None]
    if unknown:
        raise data_error(
            source.key,
            f"the folder {source.path!r} has files of named splits and others ({listed(unknown)})",
            "name the files one by one, or give each the name of its split",
        )
    if not chosen:
        raise data_error(
            f"{source.key}.split",
            f"the folder {source.path!r} has no split {source.split!r}",
            f"splits found: {listed(sorted({split for split in splits if split}))}",
        )
    return chosen


def _split_of(path: Path) -> str | None:
    word = re.split(r"[-_.]", path.name, maxsplit=1)[0].lower()
    return word if word in SPLITS else None


def _require_same_columns(paths: list[Path], tables: list[Table], source: Source) -> None:
    """Files of a table must have equal columns; rows of JSON may leave some out."""
    first = set(tables[0].columns)
    for path, table in zip(paths[1:], tables[1:], strict=True):
        columns = set(table.columns)
        if columns == first or (not table.fixed and (columns <= first or first <= columns)):
            continue
        raise data_error(
            source.key,
            f"the folder {source.path!r} mixes columns: {paths[0].name} has {listed(sorted(first))}, {path.name} has "
            f"{listed(sorted(columns))}",
            "name the files as sources of their own",
        )
