"""The precision policy satisfies what every policy has to."""

from __future__ import annotations

from tunekit.testing import PrecisionSuite
from tunekit_precision import PrecisionPolicy


class TestAutomaticPolicy(PrecisionSuite):
    plugin = PrecisionPolicy()


class TestPureHalf(PrecisionSuite):
    plugin = PrecisionPolicy(pure=True)
    refuses = frozenset({"an NVIDIA card without bf16"})


class TestFullPrecisionOnTheCpu(PrecisionSuite):
    plugin = PrecisionPolicy(device="cpu", compute="fp32")
