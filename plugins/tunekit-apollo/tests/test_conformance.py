"""APOLLO satisfies what every optimiser has to."""

from __future__ import annotations

from tunekit.testing import OptimizerSuite
from tunekit_apollo import Apollo


class TestApollo(OptimizerSuite):
    plugin = Apollo(rank=8, update_interval=4)


class TestApolloMini(OptimizerSuite):
    plugin = Apollo(rank=1, granularity="tensor", scale=128, targets=["q_proj", "down_proj"], growth_limit=None)
