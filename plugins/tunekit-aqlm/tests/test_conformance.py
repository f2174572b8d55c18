"""AQLM's checkpoints satisfy what every quantiser has to, with codes of one byte and of two."""

from __future__ import annotations

from pathlib import Path

from tunekit.testing import QuantizerSuite
from tunekit.values import ModelBundle
from tunekit_aqlm import Aqlm
from tunekit_aqlm.testing import make_checkpoint


class TestOneByte(QuantizerSuite):
    """Codebooks of 256 entries: where the library's own kernel for a CPU cannot train an adapter."""

    plugin = Aqlm()
    error_bound = 0.5
    gradient_cosine = 0.8  # two codes of 8 bits for 4 random weights
    bits = 8

    def quantized(self, folder: Path) -> ModelBundle:
        self.request(folder)
        coded = folder.parent / f"{folder.name}-coded"
        if not coded.exists():
            make_checkpoint(folder, coded, bits=self.bits)
        return self._loaded(coded, self.make(), *self.companions)


class TestTwoBytes(TestOneByte):
    """Codebooks of 1024 entries."""

    error_bound = 0.3
    gradient_cosine = 0.85
    bits = 10
