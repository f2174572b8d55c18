"""Compressed checkpoints satisfy what every quantiser has to."""

from __future__ import annotations

from pathlib import Path

from tunekit.testing import ExportSuite, QuantizerSuite, tiny_model, tiny_tokenizer
from tunekit.values import ModelBundle
from tunekit_compressed_tensors import CompressedTensors, CompressedTensorsExport
from tunekit_compressed_tensors.producing import compress_


class TestFourBits(QuantizerSuite):
    plugin = CompressedTensors()
    error_bound = 0.3
    gradient_cosine = 0.85  # sixteen evenly spaced values
    bits = 4

    def quantized(self, folder: Path) -> ModelBundle:
        stored = folder.parent / f"{folder.name}-stored"
        if not stored.exists():
            compress_(tiny_model(), stored, self.bits, 32)
            tiny_tokenizer().save_pretrained(str(stored))
        return self._loaded(stored, self.make(), *self.companions)


class TestEightBits(TestFourBits):
    error_bound = 0.03
    gradient_cosine = 0.99
    bits = 8


class TestExport(ExportSuite):
    plugin = CompressedTensorsExport(bits=8)
