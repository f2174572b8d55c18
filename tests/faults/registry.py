"""Faulty plugins by the test of the kit that has to catch them."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tunekit.cli.new import Hook, write_plugin


@dataclass(frozen=True)
class Fault:
    """A plugin with one thing wrong, the suite and test that have to catch it, and what they say of it."""

    suite: type
    test: str
    says: str
    make: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.suite.__name__}-{self.make.__name__}"


FAULTS: list[Fault] = []
_WRITTEN = tempfile.TemporaryDirectory()


def fault(suite: type, test: str, says: str, **arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that makes a suite of a faulty plugin; it may take `site` and `monkeypatch`."""

    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        FAULTS.append(Fault(suite, test, says, make, arguments))
        return make

    return register


def suite_of(base: type, plugin: Any, **attributes: Any) -> Any:
    """A suite of the kit for this plugin."""
    return type(f"Faulty{base.__name__}", (base,), {"plugin": plugin, **attributes})()


@cache
def good(hook: Hook, module: str = "") -> Any:
    """What `tunekit new plugin` writes for a hook, imported: the good plugin that faults are put into."""
    name = f"good-{hook.value}"
    folder = Path(_WRITTEN.name)
    if not (folder / f"tunekit-{name}").exists():
        sys.path.append(str(write_plugin(name, hook, folder) / "src"))
        importlib.invalidate_caches()
    return importlib.import_module(f"tunekit_{name.replace('-', '_')}{module}")
