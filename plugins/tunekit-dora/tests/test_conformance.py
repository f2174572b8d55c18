"""DoRA satisfies what every adapter has to, on top of LoRA."""

from __future__ import annotations

from tunekit.testing import AdapterSuite
from tunekit_dora import Dora
from tunekit_lora import Lora


class TestDora(AdapterSuite):
    plugin = Dora()
    companions = (Lora(rank=4),)
