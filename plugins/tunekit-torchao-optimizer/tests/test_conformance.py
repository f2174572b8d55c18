"""AdamW of torchao satisfies what every optimiser has to."""

from __future__ import annotations

from tunekit.testing import OptimizerSuite
from tunekit_torchao_optimizer import TorchaoOptimizer


class TestEightBit(OptimizerSuite):
    plugin = TorchaoOptimizer()


class TestFourBit(OptimizerSuite):
    plugin = TorchaoOptimizer(states="4bit")
