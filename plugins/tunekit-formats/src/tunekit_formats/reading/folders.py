"""A folder of files, on disk or in an archive: those of one split, sorted by path, read one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tunekit.values import Source

from ..problems import data_error, listed
from .blobs import Blob, file_blob
from .files import KINDS, UNREADABLE, FileKind, kind_of, open_file, unreadable
from .tables import Table, join_tables

SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
"""Words that mark the split of a file, at the start of its name or as the name of a folder it lies in:
`train.jsonl`, `test-00000-of-00002.parquet`, `validation/rows.csv`."""

ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that tell about a data set and hold none of its rows."""

Files = Sequence[tuple[str, Blob]]
"""Files with their paths in the folder."""


def open_folder(folder: Path, source: Source, split: str) -> Table:
    """Open the files of one split. Raises DataError: none, of several kinds, or with different columns."""
    try:
        if (folder / "dataset_dict.json").is_file():
            return _open_saved(_saved_split(folder, source, split), source)
        if (folder / "state.json").is_file():
            _require_train(source, split)
            return _open_saved(folder, source)
        paths = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    except UNREADABLE as error:
        raise unreadable(source.name, error) from error
    files = [(name, file_blob(path, _join(source.path or "", name))) for name, path in sorted(paths.items())]
    return open_files(files, source, split, f"the folder {source.path!r}")


def open_files(files: Files, source: Source, split: str, what: str) -> Table:
    """Open those of the files that hold rows of one split, as one table; `what` they lie in is told in messages."""
    found = [(name, blob) for name, blob in files if _holds_rows(name)]
    if not found:
        raise data_error(source.key, f"{what} has no data files", f"put {', '.join(KINDS)} there")
    _require_one_kind(found, source, what)
    chosen = _split(found, source, split, what)
    names = [name for name, _ in chosen]
    tables = [open_file(blob, name, source.key, source.bad_rows == "error") for name, blob in chosen]
    _require_same_columns(names, tables, source, what)
    return join_tables(names, tables)


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _walk(folder: Path) -> Iterator[Path]:
    """All files, however deep. A link that leads nowhere is one too, so that it is missed when it is read."""
    for path in folder.iterdir():
        if hidden(path.name):
            continue
        if not path.is_dir():
            yield path
        elif not (path.is_symlink() and folder.resolve().is_relative_to(path.resolve())):  # a link to where we are
            yield from _walk(path)


def hidden(name: str) -> bool:
    """Files of an operating system or a tool, such as `__MACOSX/._rows.json`."""
    return any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)


def _holds_rows(name: str) -> bool:
    return kind_of(name) is not None and not hidden(name) and PurePosixPath(name).name not in ABOUT


def _require_one_kind(files: Files, source: Source, what: str) -> None:
    kinds: dict[FileKind | None, str] = {}
    for name, _ in files:
        kinds.setdefault(kind_of(name), name)
    if len(kinds) > 1:
        some = listed(kinds.values())
        raise data_error(source.key, f"{what} mixes kinds of files ({some})", "name the files one by one")


def _split(files: Files, source: Source, wanted: str, what: str) -> Files:
    """The files of the split asked for; files whose names tell no split are all `train`."""
    splits = [_split_of(name) for name, _ in files]
    if not any(splits):
        splits = ["train"] * len(files)
    unknown = [name for (name, _), split in zip(files, splits, strict=True) if split is None]
    if unknown:
        raise data_error(
            source.key,
            f"{what} has files of named splits and others ({listed(unknown)})",
            "name the files one by one, or give each the name of its split",
        )
    chosen = [file for file, split in zip(files, splits, strict=True) if split == wanted]
    if not chosen:
        _no_split(source, wanted, [split for split in splits if split], what)
    return chosen


def _no_split(source: Source, wanted: str, splits: Sequence[str], what: str) -> None:
    found = listed(sorted(set(splits)))
    raise data_error(f"{source.key}.split", f"{what} has no split {wanted!r}", f"splits found: {found}")


def _split_of(name: str) -> str | None:
    """What a file's name says, else the nearest folder that is named after a split."""
    *folders, file = PurePosixPath(name.lower()).parts
    words = (re.split(r"[-_.]", file, maxsplit=1)[0], *reversed(folders))
    return next((word for word in words if word in SPLITS), None)


def _require_same_columns(names: Sequence[str], tables: Sequence[Table], source: Source, what: str) -> None:
    """Files of a table must have equal columns; rows of JSON may leave some out."""
    first = set(tables[0].columns)
    for name, table in zip(names[1:], tables[1:], strict=True):
        columns = set(table.columns)
        if columns == first or (not table.fixed and (columns <= first or first <= columns)):
            continue
        raise data_error(
            source.key,
            f"{what} mixes columns: {names[0]} has {listed(sorted(first))}, {name} has {listed(sorted(columns))}",
            "name the files as sources of their own",
        )


# Folders that `datasets` has saved: `state.json` names the Arrow files in their order.


def _saved_split(folder: Path, source: Source, split: str) -> Path:
    splits = _about(folder / "dataset_dict.json", source).get("splits")
    names = [str(name) for name in splits] if isinstance(splits, list) else []
    if split not in names:
        _no_split(source, split, names, f"the folder {source.path!r}")
    return folder / split


def _open_saved(folder: Path, source: Source) -> Table:
    entries = _about(folder / "state.json", source).get("_data_files") or []
    named = [entry.get("filename") for entry in entries if isinstance(entry, dict)]
    names = [name for name in named if isinstance(name, str) and PurePosixPath(name).name == name]
    if not names:
        raise data_error(source.name, "names no Arrow files in its state.json", "save the data set again")
    files = [(name, file_blob(folder / name, str(folder / name))) for name in names]
    tables = [open_file(blob, name, source.key, source.bad_rows == "error") for name, blob in files]
    return join_tables(names, tables)


def _about(path: Path, source: Source) -> dict[str, Any]:
    try:
        about = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise data_error(str(path), f"is not JSON: {error}", "save the data set again") from error
    if not isinstance(about, dict):
        raise data_error(str(path), "tells nothing of a data set", "save the data set again")
    return about


def _require_train(source: Source, split: str) -> None:
    if split != "train":
        _no_split(source, split, ["train"], f"the folder {source.path!r}")
