"""Who is using a folder: a lock that goes when its process does, however it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

NAME = "lock"
UNLOCKABLE = 86_400.0
"""Seconds after which a folder counts as idle where the system cannot lock files."""


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Say that this process uses the folder, together with any others that do.

    Raises FileNotFoundError where there is no such folder.
    """
    file = folder / NAME
    handle = os.open(file, os.O_RDONLY) if file.exists() else os.open(file, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        _lock(handle, alone=False)
        yield
    finally:
        os.close(handle)


def is_idle(folder: Path, rest: float = 0.0) -> bool:
    """Whether no process uses the folder, and it is at least so many seconds old."""
    try:
        age = time.time() - folder.stat().st_mtime
        handle = os.open(folder / NAME, os.O_RDONLY)
    except FileNotFoundError:
        return folder.exists() and age >= rest
    try:
        locked = _lock(handle, alone=True)
    finally:
        os.close(handle)
    return age >= (UNLOCKABLE if locked is None else rest) and locked is not False


def _lock(handle: int, alone: bool) -> bool | None:
    """Try to lock; None where the system cannot say."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
