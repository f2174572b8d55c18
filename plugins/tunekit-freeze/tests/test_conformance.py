"""Freezing satisfies what every adapter has to; training all weights what every plugin has to."""

from __future__ import annotations

from tunekit.testing import AdapterSuite, PluginSuite
from tunekit_freeze import Freeze, Full


class TestFreeze(AdapterSuite):
    plugin = Freeze(layers=1)


class TestFreezeOfNamedModules(AdapterSuite):
    plugin = Freeze(layers=-1, modules=["mlp", "q_proj"], extra=["norm", "lm_head"])


class TestExpansion(AdapterSuite):
    plugin = Freeze(expand=2)


class TestFull(PluginSuite):
    plugin = Full(freeze_embeddings=True)
