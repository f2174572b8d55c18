"""An optimiser of bitsandbytes satisfies what every optimiser has to."""

from __future__ import annotations

from tunekit.testing import OptimizerSuite
from tunekit_bnb_optimizer import BnbOptimizer


class TestAdamW(OptimizerSuite):
    plugin = BnbOptimizer()


class TestLion(OptimizerSuite):
    plugin = BnbOptimizer(kind="lion")
    learning_rate = 3e-3


class TestAdEMAMix(OptimizerSuite):
    plugin = BnbOptimizer(kind="ademamix", smallest=0)
