"""Adam-mini satisfies what every optimiser has to."""

from __future__ import annotations

from tunekit.testing import OptimizerSuite
from tunekit_adam_mini import AdamMini


class TestAdamMini(OptimizerSuite):
    plugin = AdamMini()
