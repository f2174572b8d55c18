"""Folders that are made once and kept: each is whole or not there, and two processes at once are safe."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunekit.errors import TunekitError


def is_whole(folder: Path, manifest: str) -> bool:
    """Whether every file that the manifest lists under `files` is there in its full size."""
    try:
        sizes = json.loads((folder / manifest).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def alone(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Let one process at a time work on a folder, and clear away what a killed one left.

    Raises TunekitError, that `what` cannot be written to the folder above, where the disk does not let it.
    """
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            for stale in folder.parent.glob(f".{folder.name}.partial-*"):
                shutil.rmtree(stale)
            yield
    except OSError as error:
        raise TunekitError(f"{what} cannot be written to {folder.parent}: {error}", remedy) from error


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, which takes the place of `folder` where nothing fails."""
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        partial.mkdir()
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
