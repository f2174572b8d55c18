"""Every way to train in several processes satisfies what every plugin has to."""

from __future__ import annotations

from tunekit.testing import PluginSuite
from tunekit_distributed import Ddp


class TestDdp(PluginSuite):
    plugin = Ddp(processes=2, find_unused=True)
