"""torchao satisfies what every quantiser, and every patch, has to."""

from __future__ import annotations

from tunekit.testing import ExportSuite, PatchSuite, QuantizerSuite
from tunekit_torchao import Qat, Torchao, TorchaoExport


class TestInt8(QuantizerSuite):
    plugin = Torchao()
    error_bound = 0.03


class TestInt4(QuantizerSuite):
    plugin = Torchao(kind="int4")
    error_bound = 0.3
    gradient_cosine = 0.85  # sixteen evenly spaced values


class TestFloat8(QuantizerSuite):
    plugin = Torchao(kind="float8")
    error_bound = 0.1


class TestQat(PatchSuite):
    plugin = Qat()
    changes = frozenset({"evaluation", "training", "gradients"})


class TestInt8Export(ExportSuite):
    plugin = TorchaoExport()
