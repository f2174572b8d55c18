"""Every error a user can meet: what failed, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, found before anything expensive has started.

    `where` is a key path of the recipe (`use.lora.rank`), a row (`alpaca.json, row 17`), or a file.
    `message` says what is wrong and why; `remedy` says what to do.
    """

    where: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}; {self.remedy}" if self.remedy else head


class TunekitError(Exception):
    """The base of all errors raised on purpose. `exit_code` is what the program ends with."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message if not remedy else f"{message}; {remedy}")
        self.remedy = remedy


class ProblemsError(TunekitError):
    """Several problems, said at once. The message lists each on a line of its own."""

    exit_code = 2
    subject = "input"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        assert self.problems, "an error of problems needs at least one"
        count = len(self.problems)
        title = f"{count} problem{'s' if count > 1 else ''} in the {self.subject}"
        super().__init__("\n".join([f"{title}:", *(f"  - {problem}" for problem in self.problems)]))


class RecipeError(ProblemsError):
    """The recipe cannot be read or holds a key, type or value that means nothing."""

    subject = "recipe"


class PlanError(ProblemsError):
    """The recipe reads well but cannot be carried out here."""

    subject = "plan"


class DataError(ProblemsError):
    """Rows that cannot be trained on, each with its number and what to do."""

    subject = "data"


class CatalogError(TunekitError):
    """A plugin that was asked for cannot be had."""

    exit_code = 2


class UnknownPluginError(CatalogError):
    """No installed distribution offers a plugin of this name."""

    def __init__(self, name: str, known: Sequence[str], disabled: bool = False) -> None:
        self.name = name
        super().__init__(*_unknown_plugin_message(name, known, disabled))


class BrokenPluginError(CatalogError):
    """The plugin is installed but importing it failed; the cause is chained."""


class DuplicatePluginError(CatalogError):
    """Two distributions offer plugins of one name."""


class HookCallError(TunekitError):
    """A plugin raised while it was doing its part; names plugin, distribution, version and hook."""

    def __init__(self, plugin: str, distribution: str, version: str, hook: str, cause: BaseException) -> None:
        self.plugin, self.distribution, self.version, self.hook = plugin, distribution, version, hook
        super().__init__(
            f"plugin {plugin} ({distribution} {version}) failed in {hook}: {type(cause).__name__}: {cause}"
        )


class ModelNotFoundError(TunekitError):
    """The model named in the recipe is not where it is said to be."""

    exit_code = 2


class RunFolderError(TunekitError):
    """The output folder cannot be written, holds another run, or holds none."""

    exit_code = 2


class ExportError(TunekitError):
    """An export, read again, is not what was trained."""


class DivergedError(TunekitError):
    """The loss or a gradient is no longer a finite number."""

    exit_code = 3


class InterruptedRunError(TunekitError):
    """The user stopped the run; what was done is saved and can be resumed."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Find the known name closest to `name`, or None where nothing is close."""
    import difflib

    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


TOGETHER: dict[str, tuple[str, ...]] = {
    "tunekit-distributed": ("ddp", "fsdp", "zero"),
    "tunekit-dpo": ("orpo", "simpo", "cpo"),
    "tunekit-formats": ("files", "alpaca", "sharegpt", "openai", "preference", "labelled", "prompt", "text"),
    "tunekit-freeze": ("full",),
    "tunekit-lora": ("stack",),
    "tunekit-lora-inits": ("gaussian", "orthogonal", "olora", "eva", "corda", "loraga", "loftq"),
    "tunekit-rewards": ("reward_match", "reward_regex", "reward_length"),
    "tunekit-sft": ("pretrain",),
    "tunekit-templates": ("template", "tools"),
    "tunekit-torchao": ("qat", "fp8"),
    "tunekit-train": ("adamw",),
    "tunekit-trl": ("grpo", "rloo"),
}
"""Plugins of this project that no distribution is named after; for the line that installs a missing one."""


def _unknown_plugin_message(name: str, known: Sequence[str], disabled: bool) -> tuple[str, str]:
    if disabled:
        return (
            f"plugin {name!r} is disabled by TUNEKIT_DISABLED_PLUGINS",
            "take it out of that variable to use it",
        )
    together = next((distribution for distribution, names in TOGETHER.items() if name in names), None)
    if together is not None:
        return f"no plugin named {name!r} is installed", f"`pip install {together}` brings it"
    close = nearest(name, known)
    suggestion = f"did you mean {close!r}? " if close else ""
    return (
        f"no plugin named {name!r} is installed",
        f"{suggestion}`tunekit plugins` lists what is installed; a plugin of that name would come with "
        f"`pip install tunekit-{name}`",
    )
