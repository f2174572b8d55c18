"""Data sets on the Hugging Face hub, through `datasets`, which is imported only here."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from typing import Any

from tunekit.values import Source

from .problems import data_error, place
from .tables import Record, Table


def open_hub(source: Source, subset: str | None, revision: str | None) -> Table:
    """Open one split of a hub data set.

    Raises DataError: `datasets` is not installed, the hub cannot be reached, no such data set, subset or split.
    """
    data = _load(source, subset, revision)

    def read() -> Iterator[Record]:
        return ((f"{source.path}, row {number}", row) for number, row in enumerate(data, 1))

    return Table(tuple(data.column_names), read, _fingerprint(data), fixed=True)


def _load(source: Source, subset: str | None, revision: str | None) -> Any:
    where = place(source)
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        message = "is no file or folder here, and reading it from the hub needs `datasets`"
        raise data_error(where, message, "`pip install tunekit-formats[hub]`, or check the path") from error
    try:
        return datasets.load_dataset(source.path, name=subset, split=source.split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise data_error(
            where,
            f"is no file or folder here, and as a data set on the hub it cannot be had: {reason}",
            "check the name, `split`, `use.files.subset` and `use.files.revision`, and the network",
        ) from error


def _fingerprint(data: Any) -> str:
    """SHA-256 of the values themselves, as Arrow lays them out."""
    digest = hashlib.sha256()
    for table in data.with_format("arrow").iter(batch_size=1000):
        for batch in table.replace_schema_metadata(None).to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()
