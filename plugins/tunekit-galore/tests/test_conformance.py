"""GaLore satisfies what every optimiser has to."""

from __future__ import annotations

from tunekit.testing import OptimizerSuite
from tunekit_galore import Galore


class TestGalore(OptimizerSuite):
    plugin = Galore(rank=8, update_interval=4, scale=1.0)


class TestGaloreOnTheLargerSide(OptimizerSuite):
    plugin = Galore(rank=16, update_interval=4, projection="reverse_std", targets=["mlp"], scale=1.0)
