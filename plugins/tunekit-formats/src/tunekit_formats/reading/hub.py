"""Data sets of the `datasets` library, from the Hugging Face hub or at hand; it is imported only here."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from tunekit.values import Row, Source

from ..problems import data_error, place
from .tables import Pass, Table

HUB = "hf://datasets/"
"""How an address of a data set on the hub starts; without a file after the name it is the whole data set."""

BATCH = 1000
"""Rows turned into Python values at a time."""

_known: dict[tuple[object, ...], str] = {}
_of_object: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def open_hub(source: Source) -> Table:
    """Open one split of a hub data set, or a part of it.

    Raises DataError: `datasets` is not installed, the hub cannot be reached, no such data set, subset or split.
    """
    data = _load(source)
    name = source.name

    def read() -> Pass:
        return (Row(number, f"{name}, row {number}", row) for number, row in enumerate(dataset_rows(data), 1))

    if not len(data):
        raise data_error(place(source), "holds no rows", "give at least one row")
    return Table(tuple(data.column_names), read, _fingerprint(data, source), fixed=True)


def dataset_rows(data: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a `datasets.Dataset` as they are stored: an image is its bytes and path, not a decoded picture."""
    for table in data.with_format("arrow").iter(batch_size=BATCH):
        yield from table.to_pylist()


def dataset_fingerprint(data: Any) -> str:
    """SHA-256 of the values of a `datasets.Dataset`, as Arrow lays them out; worked out once for each object."""
    if data not in _of_object:
        digest = hashlib.sha256()
        for table in data.with_format("arrow").iter(batch_size=BATCH):
            for batch in table.replace_schema_metadata(None).to_batches():
                digest.update(batch.serialize())
        digest.update("\n".join(data.column_names).encode())
        _of_object[data] = digest.hexdigest()
    return _of_object[data]


def _load(source: Source) -> Any:
    where = place(source)
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        message = "is no file or folder here, and reading it from the hub needs `datasets`"
        raise data_error(where, message, "`pip install tunekit-formats[hub]`, or check the path") from error
    name, _, tagged = (source.path or "").removeprefix(HUB).partition("@")
    options = {"name": source.subset, "split": source.split, "revision": source.revision or tagged or None}
    if source.folder:
        options["data_dir"] = source.folder
    try:
        return datasets.load_dataset(name, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise data_error(
            where,
            f"is no file or folder here, and as a data set on the hub it cannot be had: {reason}",
            "check the name, `split`, `subset` and `revision`, and the network",
        ) from error


def _fingerprint(data: Any, source: Source) -> str:
    """The fingerprint of the values, worked out once in a process for the same part of the same cached files."""
    files = [Path(entry["filename"]) for entry in data.cache_files]
    if not files:
        return dataset_fingerprint(data)
    states = ((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    key = (*states, source.split, len(data), *data.column_names)
    if key not in _known:
        _known[key] = dataset_fingerprint(data)
    return _known[key]
