"""Two tiny random vision-language models, and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tunekit_vision.testing import FAMILIES, save_pictures


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny model of one of the families, made when first asked for."""
    made: dict[str, str] = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = str(FAMILIES[family](tmp_path_factory.mktemp(family)))
        return made[family]

    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image of one colour for each."""
    return save_pictures(tmp_path_factory.mktemp("pictures"))
