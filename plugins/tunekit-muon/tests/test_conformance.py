"""Muon satisfies what every optimiser has to."""

from __future__ import annotations

from tunekit.testing import OptimizerSuite
from tunekit_muon import Muon


class TestMuon(OptimizerSuite):
    plugin = Muon()
