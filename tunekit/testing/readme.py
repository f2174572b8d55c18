"""Find a plugin's README: beside its pyproject.toml in a checkout, else in the metadata of its distribution."""

from __future__ import annotations

import inspect
from importlib import metadata
from pathlib import Path
from typing import Any

from ..plugin import Plugin


def readme_of(plugin: type[Plugin[Any]], distribution: str) -> str:
    """The text of the README. An editable install keeps the metadata of its first day, so a checkout comes first."""
    for folder in Path(inspect.getfile(plugin)).resolve().parents:
        if (folder / "pyproject.toml").is_file():
            readme = folder / "README.md"
            assert readme.is_file(), f"{folder} has no README.md"
            return readme.read_text(encoding="utf-8")
    text = metadata.metadata(distribution).get_payload()  # type: ignore[attr-defined]
    assert text, f"{distribution} was built without a README; set `readme` in its pyproject.toml"
    return str(text)
