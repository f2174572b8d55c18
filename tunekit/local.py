"""Plugins in a file of the user's own: `./my_loss.py:MyLoss` works wherever the name of an installed plugin does."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BrokenPluginError, nearest

_REFERENCE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)")


@dataclass(frozen=True)
class LocalPlugin:
    """A class in a file: what `./my_loss.py:MyLoss` refers to."""

    path: Path
    class_name: str

    @classmethod
    def parse(cls, name: str) -> LocalPlugin | None:
        """Read a reference; None where the name is that of an installed plugin."""
        found = _REFERENCE.fullmatch(name)
        return cls(Path(found["path"]).expanduser(), found["name"]) if found else None

    def __str__(self) -> str:
        return f"{self.path}:{self.class_name}"

    @property
    def name(self) -> str:
        """What the plugin is called in messages and in the run folder."""
        return self.class_name.lower()

    @property
    def module(self) -> str:
        """The name its module is imported under, which changes with the file."""
        return f"tunekit_local_{self.path.stem}_{self.version}"

    @property
    def version(self) -> str:
        """The first digits of the file's SHA-256. BrokenPluginError where there is no such file."""
        if not self.path.is_file():
            raise BrokenPluginError(
                f"there is no file {self.path}", "relative paths start where you are, then beside the recipe"
            )
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:12]

    def load(self) -> Any:
        """Import the file, once for each content, and return the class; BrokenPluginError where it is not there."""
        module = sys.modules.get(self.module) or self._imported()
        if not hasattr(module, self.class_name):
            close = nearest(self.class_name, vars(module))
            remedy = f"did you mean {close}?" if close else "name a class of the file"
            raise BrokenPluginError(f"{self.path} has no {self.class_name}", remedy)
        return getattr(module, self.class_name)

    def _imported(self) -> Any:
        spec = importlib.util.spec_from_file_location(self.module, self.path)
        assert spec is not None, "the file is a .py"
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.module] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[self.module]
            raise
        return module


def identity(name: str) -> str:
    """What must be equal for two names to mean the same plugin: the file's content, not where it lies."""
    local = LocalPlugin.parse(name)
    return name if local is None else f"{local.class_name}@{local.version}"
