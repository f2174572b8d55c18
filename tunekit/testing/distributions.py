"""What the kit reads of a plugin's distribution: its README, and the names of what it needs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path


def readme_of(plugin: type, distribution: str) -> str:
    """The text of the README. An editable install keeps the metadata of its first day, so a checkout comes first."""
    for folder in Path(inspect.getfile(plugin)).resolve().parents:
        if (project := folder / "pyproject.toml").is_file() and _is_of(project, distribution):
            readme = folder / "README.md"
            assert readme.is_file(), f"{folder} has no README.md"
            return readme.read_text(encoding="utf-8")
    # The header, not the payload: where the backport `importlib_metadata` has been imported, there is no payload.
    text = metadata.metadata(distribution).get("Description")  # type: ignore[attr-defined]
    assert text, f"{distribution} was built without a README; set `readme` in its pyproject.toml"
    return str(text)


def requirements_of(distribution: str) -> Iterator[str]:
    """The normalised names of what a distribution depends on."""
    for line in metadata.requires(distribution) or ():
        name = re.match(r"[A-Za-z0-9._-]+", line)
        assert name is not None, f"{line!r} is no requirement"
        yield _normalised(name.group())


def _is_of(project: Path, distribution: str) -> bool:
    """Whether a pyproject.toml is the distribution's own, and not that of a project whose environment it lies in."""
    names = re.findall(r"""^name\s*=\s*["']([^"']+)""", project.read_text(encoding="utf-8"), re.MULTILINE)
    return _normalised(distribution) in map(_normalised, names)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
