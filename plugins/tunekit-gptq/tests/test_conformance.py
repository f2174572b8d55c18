"""GPTQ satisfies what every quantiser has to, and what every method of gptqmodel's has to here; so does its export."""

from __future__ import annotations

import pytest

from tunekit_gptq import Gptq, GptqExport

pytest.importorskip("gptqmodel")
from tunekit_gptq.testing import PackedExportSuite, PackedSuite


class TestGptq(PackedSuite):
    plugin = Gptq(group_size=32)
    error_bound = 0.16  # measured: 0.136


class TestGptqExport(PackedExportSuite):
    plugin = GptqExport(bits=8, group_size=32)
