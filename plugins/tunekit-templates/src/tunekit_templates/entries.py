"""Things that distributions offer by name in an entry point group: list them, load one, say what is wrong."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any

from tunekit.errors import Problem, TunekitError, nearest


@dataclass(frozen=True, slots=True)
class Shelf:
    """Named things of one kind: `kind` is what people call them, `group` the entry point group."""

    kind: str
    group: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names on offer, sorted."""
        return tuple(sorted(self._points().names))

    def _points(self) -> metadata.EntryPoints:
        return _read(self.group, tuple(sys.path))

    def problems(self, name: str, where: str) -> list[Problem]:
        """What keeps this name from being loaded, as far as metadata tells; `where` is the recipe key of the option."""
        found = self._points().select(name=name)
        if not found:
            close = nearest(name, self.names)
            suggestion = f"did you mean {close!r}? " if close else ""
            return [
                Problem(where, f"no {self.kind} is named {name!r}", f"{suggestion}there are {', '.join(self.names)}")
            ]
        if len(found) > 1:
            both = " and ".join(sorted(_distribution(point) for point in found))
            return [Problem(where, f"two distributions offer a {self.kind} named {name!r}: {both}", "uninstall one")]
        return []

    def origin(self, name: str) -> str:
        """The distribution that offers the one thing of this name, and its version."""
        (point,) = self._points().select(name=name)
        return _distribution(point)

    def load(self, name: str) -> Any:
        """Import the one thing of this name, which `problems` knows nothing against.

        Raises TunekitError, with its cause chained, where importing it fails.
        """
        (point,) = self._points().select(name=name)
        try:
            return point.load()
        except Exception as cause:
            what = f"the {self.kind} {name!r} ({_distribution(point)}) cannot be imported"
            remedy = "reinstall that distribution, or name another"
            raise TunekitError(f"{what}: {type(cause).__name__}: {cause}", remedy) from cause


@lru_cache
def _read(group: str, path: tuple[str, ...]) -> metadata.EntryPoints:
    """The entry points of a group, read once for each `path`: it takes longer than all the rest of a plan."""
    return metadata.entry_points(group=group)


def _distribution(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


TEMPLATES = Shelf("chat template", "tunekit.templates")
TOOL_FORMATS = Shelf("tool format", "tunekit.tool_formats")
