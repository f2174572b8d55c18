"""AdamW satisfies what every optimiser has to."""

from __future__ import annotations

from tunekit.testing import OptimizerSuite
from tunekit_train import AdamW


class TestAdamW(OptimizerSuite):
    plugin = AdamW()


class TestAdamWWithOtherMoments(OptimizerSuite):
    plugin = AdamW(beta1=0.5, beta2=0.9, eps=1e-6)
