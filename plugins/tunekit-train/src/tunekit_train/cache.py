"""Prepared data kept between runs: a folder for each key, whole or not there; the least recently used goes first."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from tunekit.values import Account, Item, Mixing

from .locks import in_use, is_idle
from .store import MANIFEST, DamagedStoreError, StoredItems, write_items, writing

LIMIT = 20 << 30
"""Bytes of all entries together: about 4 billion tokens, more than most fine-tuning data, less than most disks."""
PARTIAL = ".partial-"
ABANDONED = 60.0
"""Seconds after which a half-written folder that nobody has locked is taken for left behind."""


class DataCache:
    """Stored items by key, in one folder that any number of processes use at once."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def find(self, key: str, mixing: Mixing | None = None) -> StoredItems | None:
        """Open an entry, and note that it was used. One that is damaged is taken away, one out of reach is none."""
        folder, closing = self.folder / key, ExitStack()
        try:
            closing.enter_context(in_use(folder))
            found = StoredItems(folder, mixing, closing)
        except (OSError, DamagedStoreError) as error:
            closing.close()
            if isinstance(error, DamagedStoreError):
                self._remove(folder)
            return None
        with suppress(OSError):  # a cache that can only be read serves as well
            os.utime(folder / MANIFEST)
        return found

    def make(self, key: str, items: Iterable[Item], account: Account, mixing: Mixing | None = None) -> StoredItems:
        """Store items under a key and open what was stored.

        It is written beside and renamed. Where `account` has problems once all items were taken, it is kept for as long
        as it is open and never found again.

        Raises TunekitError where the folder cannot be written.
        """
        with ExitStack() as undo:
            partial = self._begin(undo)
            write_items(partial, items, account)
            if not account.problems:
                with suppress(OSError):  # another process was first
                    partial.rename(self.folder / key)
            found = None if account.problems else self.find(key, mixing)
            found = found or StoredItems(partial, mixing, undo.pop_all())
        found.account = account
        self._trim()
        return found

    def _begin(self, undo: ExitStack) -> Path:
        """A folder to write into, locked; those that others left half written are deleted."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(f"{PARTIAL}*"):
                if is_idle(path, ABANDONED):
                    shutil.rmtree(path, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.folder))
            undo.callback(shutil.rmtree, partial, ignore_errors=True)
            undo.enter_context(in_use(partial))
        return partial

    def _trim(self) -> None:
        """Delete what was not used for longest, until the rest is within the limit; nothing that is in use."""
        sizes, used = dict[Path, int](), dict[Path, float]()
        for path in self.folder.glob(f"*/{MANIFEST}"):
            with suppress(FileNotFoundError):  # another process, or another thread, takes it away at this moment
                sizes[path.parent] = sum(each.stat().st_size for each in path.parent.iterdir())
                used[path.parent] = path.stat().st_mtime
        total = sum(sizes.values())
        for path in sorted(used, key=used.__getitem__):
            if total <= self.limit:
                return
            if is_idle(path):
                self._remove(path)
                total -= sizes[path]

    def _remove(self, folder: Path) -> None:
        """Take an entry away in one step, so that nobody finds half of it, and then delete it."""
        with suppress(OSError):
            aside = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.folder))
            folder.rename(aside / "removed")
            shutil.rmtree(aside, ignore_errors=True)
