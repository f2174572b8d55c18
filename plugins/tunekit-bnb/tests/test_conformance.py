"""bitsandbytes satisfies what every quantiser has to."""

from __future__ import annotations

from tunekit.testing import QuantizerSuite
from tunekit_bnb import Bnb


class TestNf4(QuantizerSuite):
    plugin = Bnb()
    error_bound = 0.25


class TestFp4WithoutDoubleQuantization(QuantizerSuite):
    plugin = Bnb(kind="fp4", double_quantization=False)
    error_bound = 0.3
    gradient_cosine = 0.8  # its values are coarser than those of nf4


class TestInt8(QuantizerSuite):
    plugin = Bnb(bits=8)
    error_bound = 0.05
