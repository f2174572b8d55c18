"""NEFTune satisfies what every patch has to: it acts in training alone."""

from __future__ import annotations

from tunekit.testing import PatchSuite
from tunekit_neftune import Neftune


class TestNeftune(PatchSuite):
    plugin = Neftune()
    changes = frozenset({"training", "gradients"})
