"""GaLore satisfies what every optimiser has to."""

from __future__ import annotations

from tunekit.testing import OptimizerSuite
from tunekit_galore import Galore


class TestGalore(OptimizerSuite):
    plugin = Galore(rank=8, update_interval=4, scale=1.0)


class TestGaloreOnNamedWeights(OptimizerSuite):
    plugin = Galore(rank=4, update_interval=1, targets=["q_proj", "down_proj"], projection="left")
