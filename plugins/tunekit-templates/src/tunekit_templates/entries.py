"""Things that distributions offer by name in an entry point group: list them, load one, say what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
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
        return tuple(sorted(metadata.entry_points(group=self.group).names))

    def problems(self, name: str, where: str) -> list[Problem]:
        """What keeps this name from being loaded, as far as metadata tells; `where` is the recipe key of the option."""
        found = metadata.entry_points(group=self.group, name=name)
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
        (point,) = metadata.entry_points(group=self.group, name=name)
        return _distribution(point)

    def load(self, name: str) -> Any:
        """Import the one thing of this name, which `problems` knows nothing against.

        Raises TunekitError, with its cause chained, where importing it fails.
        """
        (point,) = metadata.entry_points(group=self.group, name=name)
        try:
            return point.load()
        except Exception as cause:
            what = f"the {self.kind} {name!r} ({_distribution(point)}) cannot be imported"
            remedy = "reinstall that distribution, or name another"
            raise TunekitError(f"{what}: {type(cause).__name__}: {cause}", remedy) from cause


def _distribution(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


TEMPLATES = Shelf("chat template", "tunekit.templates")
TOOL_FORMATS = Shelf("tool format", "tunekit.tool_formats")
