"""The loader of vision-language models satisfies what every loader has to; without images it is a model for text."""

from __future__ import annotations

from pathlib import Path

from tunekit.testing import LoaderSuite
from tunekit.testing.tiny import CHATML
from tunekit_vision import Vision
from tunekit_vision.testing import save_llava


class TestLoader(LoaderSuite):
    plugin = Vision()

    def saved(self, folder: Path) -> str:
        """A LLaVA around the tiny model of the kit."""
        save_llava(folder / "model", CHATML)
        return str(folder / "model")
