"""One file: an archive of others, or rows itself."""

from __future__ import annotations

from tunekit.values import Source

from ..problems import data_error
from .archives import is_archive, open_archive
from .blobs import Blob
from .files import open_file
from .tables import Table


def open_single(blob: Blob, name: str, source: Source, split: str) -> Table:
    """Open a file; `name` tells its kind. Raises DataError as for archives and files."""
    if is_archive(name):
        return open_archive(blob, name, source, split)
    require_only_split(source, split, "one file")
    return open_file(blob, name, source.key, source.bad_rows == "error")


def require_only_split(source: Source, split: str, what: str) -> None:
    """Refuse a split of something that has none. Raises DataError."""
    if split != "train":
        raise data_error(
            f"{source.key}.split",
            f"{source.name} is {what}, which has no split {split!r}",
            "leave `split` out, or name a folder, an archive or a hub data set that has splits",
        )
