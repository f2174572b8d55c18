"""Write files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import RunFolderError

ESCAPED = "backslashreplace"
"""How half a surrogate pair is written, which UTF-8 cannot hold: as JSON escapes it."""


def write_text(path: Path, text: str) -> None:
    """Write a whole file at once: beside it first, flushed to disk, then renamed over it."""
    _write(path, (text,))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write the lines of a file at once, however many there are."""
    _write(path, (line + "\n" for line in lines))


def _write(path: Path, parts: Iterable[str]) -> None:
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors=ESCAPED) as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; RunFolderError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing", "name the folder of a run") from None
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{path} is damaged: {error}", "start the run again in another folder") from error


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line. A crash can leave its last line torn; `read_lines` leaves a torn line out."""
    with _explained(path), path.open("a", encoding="utf-8", errors=ESCAPED) as file:
        file.write(json.dumps(plain(value), ensure_ascii=False) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the JSON lines of a file; nothing where it does not exist."""
    if not path.exists():
        return
    # Not `splitlines`: a text in JSON may hold U+2028, at which that ends a line.
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def plain(value: Any) -> Any:
    """Turn values into what JSON can hold: dataclasses to mappings, sets to sorted lists, NaN to its name.

    Arrays, and numbers of numpy and torch, become lists and numbers.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(inner) for inner in value)
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if callable(as_list := getattr(value, "tolist", None)):
        return plain(as_list())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}", "free some space, or choose another output folder"
        ) from error
