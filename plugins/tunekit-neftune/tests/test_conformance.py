"""NEFTune satisfies what every patch has to."""

from __future__ import annotations

from tunekit_neftune import Neftune

from tunekit.testing import PatchSuite


class TestNeftune(PatchSuite):
    plugin = Neftune(alpha=5)
    changes = frozenset({"training", "gradients"})
