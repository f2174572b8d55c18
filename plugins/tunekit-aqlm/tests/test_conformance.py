"""AQLM's checkpoints satisfy what every quantiser has to, with codes of one byte and of two."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tunekit.testing import QuantizerSuite, save_tiny_model
from tunekit.values import ModelBundle
from tunekit_aqlm import Aqlm
from tunekit_aqlm.testing import make_checkpoint


@cache
def checkpoint(bits: int) -> Path:
    """Made once: choosing codes takes seconds."""
    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place)
    return make_checkpoint(save_tiny_model(place / "dense"), place / "coded", bits=bits)


class TestOneByte(QuantizerSuite):
    """Codebooks of 256 entries: where the library's own kernel for a CPU cannot train an adapter."""

    plugin = Aqlm()
    error_bound = 0.5
    gradient_cosine = 0.8  # two codes of 8 bits for 4 random weights
    bits = 8

    def quantized(self, folder: Path) -> ModelBundle:
        return self._loaded(checkpoint(self.bits), self.make(), *self.companions)


class TestTwoBytes(TestOneByte):
    """Codebooks of 1024 entries."""

    error_bound = 0.3
    gradient_cosine = 0.85
    bits = 10
