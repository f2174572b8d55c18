"""BAdam satisfies what every optimiser has to."""

from __future__ import annotations

from tunekit.testing import OptimizerSuite
from tunekit_badam import Badam
from tunekit_sft import Sft


class TestBadam(OptimizerSuite):
    plugin = Badam(switch_every=4)
    companions = (Sft(),)  # whose hooks it answers
    steps = 10
    learning_rate = 2e-2
