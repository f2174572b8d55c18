"""A source of the recipe becomes rows: found, opened, its split cut, its columns renamed, its rows limited."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tunekit.errors import DataError, nearest
from tunekit.values import BadRow, Row, Rows, Source

from ..problems import data_error, listed
from .archives import is_archive
from .blobs import file_blob
from .files import kind_of, unreadable
from .folders import open_folder
from .given import open_given
from .hub import HUB, open_hub
from .remote import is_remote, open_remote
from .single import open_single, require_only_split
from .slices import cut, parse_split
from .tables import Pass, Table, as_error

PEEK = 100
"""Rows of JSON looked at to learn whether a column that is to be renamed exists."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_ADDRESS = re.compile(re.escape(HUB) + r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def open_source(source: Source) -> Rows:
    """Open a source. Raises DataError: not found, unreadable, malformed, empty, or without a column to be renamed."""
    table = _open(source)
    if source.columns:
        head = (row.values for row in islice(table.read(), PEEK) if isinstance(row, Row))
        _require_columns(source, table.columns if table.fixed else tuple(dict.fromkeys(chain.from_iterable(head))))
    columns = tuple(rename(dict.fromkeys(table.columns), source.columns))
    return Rows(source, columns, lambda: _pass(source, table), table.fingerprint)


def rename(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Give columns their new names; `columns` is {new name: name in the data}. A new name hides an old column."""
    taken = {*columns, *columns.values()}
    named = {new: values[old] for new, old in columns.items() if old in values}
    return {**named, **{name: value for name, value in values.items() if name not in taken}}


def _pass(source: Source, table: Table) -> Pass:
    """One pass. Raises DataError at a malformed row where the source says `bad_rows: error`."""
    strict, columns = source.bad_rows == "error", source.columns
    for row in islice(table.read(), source.limit):
        if isinstance(row, BadRow):
            if strict:
                raise as_error(row)
            yield row
        else:
            yield Row(row.number, row.where, rename(row.values, columns)) if columns else row


def _require_columns(source: Source, found: Sequence[str]) -> None:
    for new, old in source.columns.items():
        if old not in found:
            close = nearest(old, found)
            hint = f"did you mean {close!r}? " if close else ""
            raise data_error(
                f"{source.key}.columns.{new}",
                f"{source.name} has no column {old!r}",
                f"{hint}columns found: {listed(found)}",
            )


def _open(source: Source) -> Table:
    if source.rows is not None:
        return _open_given(source)
    if not source.path:
        raise data_error(source.key, "names neither a path nor rows", "give a file, a folder, or a hub data set")
    if _HUB_ADDRESS.fullmatch(source.path) and kind_of(source.path) is None:
        return open_hub(source)
    if is_remote(source.path) and not source.path.startswith("file://"):
        _refuse_hub_options(source)
        split, part = parse_split(source)
        return cut(open_remote(source, split), part, source)
    return _open_here(source, _local(source.path))


def _open_given(source: Source) -> Table:
    _refuse_hub_options(source)
    split, part = parse_split(source)
    require_only_split(source, split, "rows given in Python")
    return cut(open_given(source), part, source)


def _open_here(source: Source, path: Path) -> Table:
    """Open what lies in this file system; a name that nothing here has may be one on the hub."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
        on_hub = not is_folder and not is_file and _may_be_on_hub(path, source.path or "")
    except OSError as error:
        raise unreadable(source.name, error) from error
    if on_hub:
        return open_hub(source)
    if not is_folder and not is_file:
        raise _not_found(source, path)
    _refuse_hub_options(source)
    split, part = parse_split(source)
    if is_folder:
        return cut(open_folder(path, source, split), part, source)
    return cut(open_single(file_blob(path, source.path or ""), path.name, source, split), part, source)


def _local(path: str) -> Path:
    if path.startswith("file://"):
        return Path(unquote(urlsplit(path).path))
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a user whom nobody knows
        return Path(path)


def _refuse_hub_options(source: Source) -> None:
    for option in ("subset", "revision"):
        if getattr(source, option) is not None:
            message = f"{source.path or 'the rows given'} is no data set on a hub, which alone has a {option}"
            raise data_error(f"{source.key}.{option}", message, f"leave `{option}` out")


def _may_be_on_hub(path: Path, name: str) -> bool:
    """A name like `owner/name`, but not a file that is missing from a folder which is there."""
    named = _HUB_NAME.fullmatch(name) is not None and not name.startswith(".")
    is_file = kind_of(path.name) is not None or is_archive(path.name)
    return named and not is_file and not path.parent.is_dir()


def _not_found(source: Source, path: Path) -> DataError:
    if path.is_symlink():
        return data_error(source.key, f"{source.path!r} is a link to something that is not there", "mend the link")
    if path.exists():
        return data_error(source.key, f"{source.path!r} is neither a file nor a folder", "give a file")
    if not path.parent.is_dir():
        return data_error(source.key, f"there is no folder {str(path.parent)!r}", "check the path")
    try:
        close = nearest(path.name, (entry.name for entry in path.parent.iterdir()))
    except OSError:
        close = None
    hint = f"did you mean {str(path.with_name(close))!r}?" if close else "check the path"
    return data_error(source.key, f"there is no file or folder {source.path!r}", hint)
