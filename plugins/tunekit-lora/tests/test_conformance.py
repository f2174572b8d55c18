"""LoRA satisfies what every adapter has to."""

from __future__ import annotations

from tunekit.testing import AdapterSuite
from tunekit_lora import Lora


class TestLora(AdapterSuite):
    plugin = Lora()


class TestRankStabilisedLora(AdapterSuite):
    plugin = Lora(rslora=True, rank=16, targets=["q_proj", "down_proj"], modules_to_save=["lm_head"])
