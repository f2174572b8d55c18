"""Scaled positions satisfy what every plugin has to."""

from __future__ import annotations

from tunekit.testing import PluginSuite
from tunekit_rope import Rope


class TestRope(PluginSuite):
    plugin = Rope(length=4096)
