"""LoRA+ satisfies what every optimiser has to."""

from __future__ import annotations

from typing import Any

from tunekit.testing import OptimizerSuite, run_context, tiny_bundle
from tunekit.values import ModelBundle
from tunekit_lora import Lora
from tunekit_loraplus import Loraplus


class TestLoraplus(OptimizerSuite):
    plugin = Loraplus(ratio=4)
    companions = (Lora(rank=4),)

    def bundle(self) -> ModelBundle:
        """The same model under a fresh adapter each time."""
        import torch

        lora: Any = self.companions[0]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            bundle: ModelBundle = lora.tunekit_attach_adapter(bundle=tiny_bundle(), context=run_context(lora))
        return bundle
