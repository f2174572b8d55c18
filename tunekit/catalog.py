"""Which plugins are installed: found by their metadata, imported only when named or listed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from .errors import BrokenPluginError, DuplicatePluginError, TunekitError, UnknownPluginError
from .local import LocalPlugin

if TYPE_CHECKING:
    from .plugin import Plugin

PLUGINS = "tunekit"
"""The entry point group of plugins."""
COMMANDS = "tunekit.commands"
"""The entry point group of subcommands; an entry has the subcommand's name and points to a plugin class."""
EXPORTS = "tunekit.exports"
"""The entry point group of export targets: a target may have the name of another plugin, as gptq and awq do."""

Status = Literal["available", "broken", "disabled", "duplicate"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry point: the plugin's name, where its class is, and the distribution, or the file, it came with."""

    name: str
    point: metadata.EntryPoint | LocalPlugin
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class Listing:
    """One row of `tunekit plugins`."""

    name: str
    status: Status
    distribution: str
    version: str
    summary: str
    hooks: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()


class Catalog:
    """The installed plugins by name."""

    def __init__(self, entries: Iterable[Entry], disabled: Iterable[str] = ()) -> None:
        self._entries: dict[str, list[Entry]] = {}
        for entry in entries:
            self._entries.setdefault(entry.name, []).append(entry)
        self._disabled = frozenset(disabled)

    @classmethod
    def discover(cls, path: Sequence[str] | None = None, group: str = PLUGINS) -> Catalog:
        """Read the metadata of all installed distributions, or of those in the folders of `path`.

        `TUNEKIT_DISABLED_PLUGINS` names plugins to leave out, separated by commas; `*` means all of them.
        """
        disabled = [name.strip() for name in os.environ.get("TUNEKIT_DISABLED_PLUGINS", "").split(",") if name.strip()]
        return cls(_entries(path, group), disabled)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all installed plugins that are not disabled, sorted."""
        return tuple(sorted(name for name in self._entries if not self.is_disabled(name)))

    def is_disabled(self, name: str) -> bool:
        """Whether the user took this plugin out."""
        return "*" in self._disabled or name in self._disabled

    def __contains__(self, name: str) -> bool:
        return name in self._entries and not self.is_disabled(name)

    def entry(self, name: str) -> Entry:
        """Find the one entry of this name.

        A class in a file (`./my_loss.py:MyLoss`) has an entry too. Raises UnknownPluginError with the nearest name, or
        DuplicatePluginError naming both distributions.
        """
        local = LocalPlugin.parse(name)
        if local is not None:
            return Entry(local.name, local, local.path.name, local.version)
        if name not in self:
            raise UnknownPluginError(name, self.names, disabled=name in self._entries)
        found = self._entries[name]
        if len(found) > 1:
            both = " and ".join(f"{entry.distribution} {entry.version}" for entry in found)
            raise DuplicatePluginError(
                f"two distributions offer a plugin named {name!r}: {both}", "uninstall one of them"
            )
        return found[0]

    def load(self, name: str) -> type[Plugin[Any]]:
        """Import the plugin class of this name; BrokenPluginError, with its cause chained, where that fails."""
        from .plugin import Plugin

        entry = self.entry(name)
        try:
            loaded = entry.point.load()
        except Exception as cause:
            remedy = f"reinstall it with `pip install --force-reinstall {entry.distribution}`"
            raise BrokenPluginError(
                f"plugin {name!r} ({entry.distribution} {entry.version}) cannot be imported: "
                f"{type(cause).__name__}: {cause}",
                f"{'mend the file' if LocalPlugin.parse(name) else remedy}, or take it out of the recipe",
            ) from cause
        if not (isinstance(loaded, type) and issubclass(loaded, Plugin)):
            raise BrokenPluginError(
                f"plugin {name!r} ({entry.distribution} {entry.version}) is {loaded!r}, no subclass of tunekit.Plugin",
                "point its entry at the plugin class",
            )
        return loaded

    def entry_of(self, plugin: type[Plugin[Any]]) -> Entry | None:
        """Find the entry a plugin class was installed under, or None for a class that no distribution lists."""
        package = plugin.__module__.partition(".")[0]
        for name in self.names:
            for entry in self._entries[name]:
                if entry.point.module.partition(".")[0] == package and entry.point.load() is plugin:
                    return entry
        return None

    def listing(self) -> list[Listing]:
        """Import every plugin and tell how each one fares. A broken one is a row with its reason."""
        rows: list[Listing] = []
        for name in sorted(self._entries):
            rows.extend(self._listing_of(name))
        return rows

    def _listing_of(self, name: str) -> list[Listing]:
        found = self._entries[name]
        first = found[0]
        if self.is_disabled(name):
            return [Listing(name, "disabled", first.distribution, first.version, "by TUNEKIT_DISABLED_PLUGINS")]
        if len(found) > 1:
            clash = "offered by " + " and ".join(entry.distribution for entry in found)
            return [Listing(name, "duplicate", entry.distribution, entry.version, clash) for entry in found]
        try:
            plugin = self.load(name)
        except TunekitError as error:
            return [Listing(name, "broken", first.distribution, first.version, str(error.__cause__ or error))]
        return [_available(first, plugin)]


def hooks_of(plugin: type[Plugin[Any]]) -> tuple[str, ...]:
    """The names of the hooks a plugin class implements, sorted."""
    kind: Any = plugin
    found: tuple[str, ...] = _hooks_of(kind)
    return found


@lru_cache(maxsize=1024)
def _hooks_of(plugin: Any) -> tuple[str, ...]:
    return tuple(sorted(name for name in dir(plugin) if hasattr(getattr(plugin, name, None), "tunekit_impl")))


def _available(entry: Entry, plugin: type[Plugin[Any]]) -> Listing:
    summary = (plugin.__doc__ or "").strip().partition("\n")[0]
    provides: frozenset[str] = plugin.provides if isinstance(plugin.provides, frozenset) else frozenset()
    return Listing(
        entry.name, "available", entry.distribution, entry.version, summary, hooks_of(plugin), tuple(sorted(provides))
    )


def _entries(path: Sequence[str] | None, group: str) -> Iterable[Entry]:
    """The entries of a group. Only the metadata of those distributions is read that have one: there may be hundreds."""
    seen: set[str] = set()
    found = metadata.distributions(path=list(path)) if path is not None else metadata.distributions()
    for distribution in found:
        points = [point for point in distribution.entry_points if point.group == group]
        name = distribution.metadata["Name"] if points else None
        if name is None or name.lower() in seen:
            continue  # an older copy further down the path, which Python would not import either
        seen.add(name.lower())
        for point in points:
            yield Entry(point.name, point, name, distribution.version)
