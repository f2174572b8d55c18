"""hqq satisfies what every quantiser has to."""

from __future__ import annotations

import pytest

from tunekit.testing import QuantizerSuite
from tunekit_hqq import Hqq

pytest.importorskip("hqq")


class TestFourBits(QuantizerSuite):
    plugin = Hqq()
    error_bound = 0.25


class TestThreeBitsAcrossRows(QuantizerSuite):
    plugin = Hqq(bits=3, group=32, axis=0)
    error_bound = 0.4
    gradient_cosine = 0.7  # eight values


class TestEightBits(QuantizerSuite):
    plugin = Hqq(bits=8)
    error_bound = 0.02
