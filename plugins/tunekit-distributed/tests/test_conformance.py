"""Every way to train in several processes satisfies what every plugin has to."""

from __future__ import annotations

from tunekit.testing import PluginSuite
from tunekit_distributed import Ddp, Fsdp, Zero


class TestDdp(PluginSuite):
    plugin = Ddp(processes=2, find_unused=True)


class TestFsdp(PluginSuite):
    plugin = Fsdp(processes=2, wrap=("LlamaDecoderLayer",), reshard=False)


class TestZero(PluginSuite):
    plugin = Zero(processes=2, stage=2, keep_whole=10)
