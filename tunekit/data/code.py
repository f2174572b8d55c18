"""What code made something: a fingerprint that changes with every edit, also where no version does."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from itertools import accumulate
from pathlib import Path


@cache
def code_fingerprint(module: str) -> str:
    """SHA-256 over the Python and template files of the package that an imported module belongs to.

    A class in a file of the user's own belongs to that file alone.
    """
    names = accumulate(module.split("."), "{}.{}".format)
    files = (getattr(sys.modules.get(name), "__file__", None) for name in names)
    file = next(filter(None, files), None)  # a namespace package, which several distributions share, has none
    digest = hashlib.sha256(module.encode())
    for path in _files(Path(file)) if file else ():
        digest.update(f"{path.name}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.name != "__init__.py":
        return [path]
    return sorted(each for each in path.parent.rglob("*") if each.suffix in (".py", ".jinja"))
