"""AWQ satisfies what every quantiser has to, and what every method of gptqmodel's has to here; so does its export."""

from __future__ import annotations

import pytest

from tunekit_awq import Awq, AwqExport

pytest.importorskip("gptqmodel")
from tunekit_gptq.testing import PackedExportSuite, PackedSuite


class TestAwq(PackedSuite):
    plugin = Awq(group_size=32)
    error_bound = 0.16  # measured: 0.139


class TestAwqExport(PackedExportSuite):
    plugin = AwqExport(group_size=32)
