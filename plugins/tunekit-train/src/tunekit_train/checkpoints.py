"""Checkpoints that are either complete or not there: written beside, marked, renamed, and only then rotated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tunekit.values import DEFAULT_ADAPTER

MARKER = "complete.json"
STATE = "tunekit.json"


class Checkpoints:
    """The checkpoints of one stage.

    Trainer writes into `partial`/checkpoint-N. `complete_` adds the engine's own state and a marker, flushes all to
    disk, and renames it to step-N in one step; what a kill leaves behind is never taken for a checkpoint.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.partial = folder / ".partial"

    def clear_partial_(self) -> None:
        """Delete what a kill left half written."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def complete(self) -> list[tuple[int, Path]]:
        """All complete checkpoints with their steps, oldest first."""
        found = [(int(path.name.removeprefix("step-")), path) for path in self.folder.glob("step-*")]
        return sorted((step, path) for step, path in found if (path / MARKER).is_file())

    def newest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        found = self.complete()
        return found[-1][1] if found else None

    def complete_(self, step: int, state: Mapping[str, Any], write: Callable[[Path], None] | None = None) -> Path:
        """Turn what Trainer has just written into a complete checkpoint, then delete the oldest.

        `write` is given the folder first, for files of its own.
        """
        written, final = self.partial / f"checkpoint-{step}", self.folder / f"step-{step}"
        if write is not None:
            write(written)
        (written / STATE).write_text(json.dumps(state))
        (written / MARKER).write_text(json.dumps({"step": step}))
        for path in [*sorted(written.rglob("*")), written]:
            _flush(path)
        if final.exists():
            shutil.rmtree(final)
        written.rename(final)
        _flush(self.folder)
        self._rotate()
        return final

    def _rotate(self) -> None:
        for _, path in self.complete()[: -self.keep]:
            (path / MARKER).unlink()  # first: a kill in mid-deletion must not leave what looks complete
            shutil.rmtree(path)


def remove_inactive_adapters(model: Any, checkpoint: Path) -> None:
    """Delete what PEFT has written of adapters that do not train: they are saved where they were trained."""
    for name in getattr(model, "peft_config", {}):
        if name in model.active_adapters:
            continue
        if name != DEFAULT_ADAPTER:
            shutil.rmtree(checkpoint / name)
            continue
        for path in checkpoint.glob("adapter_*"):
            if path.is_file():
                path.unlink()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The engine's own state in a complete checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
    return state


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
