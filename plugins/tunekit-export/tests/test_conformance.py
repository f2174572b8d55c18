"""The targets satisfy what every export target has to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunekit.catalog import EXPORTS
from tunekit.testing import ExportSuite, PluginSuite, save_tiny_model, tiny_bundle
from tunekit_export import Adapter, Gguf, Hub, Merged, Ollama


class TestMerged(ExportSuite):
    plugin = Merged(shard="100KB")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it
class TestAdapter(ExportSuite):
    plugin = Adapter()

    def made_of(self, folder, content="trained"):
        """A LoRA adapter, saved by peft; an adapter that has learnt nothing in place of the base."""
        import peft

        from tunekit.testing.observing import train_

        _, request = super().made_of(folder)
        bundle = tiny_bundle()
        config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(bundle.model, config)
        if content == "base":
            model.save_pretrained(str(folder / "adapter"))
        train_(model, steps=6)
        if content == "trained":
            model.save_pretrained(str(folder / "adapter"))
        base = save_tiny_model(folder / "tiny")
        trained = bundle.with_model(model.eval(), source=str(base))
        return trained, replace(request, adapter=folder / "adapter", model=str(base))


class TestGguf(ExportSuite):
    plugin = Gguf(quantization="f16")


class TestOllama(ExportSuite):
    plugin = Ollama(quantization="q8_0", temperature=0.5)


class TestHub(PluginSuite):
    group = EXPORTS
    plugin = Hub(repository="me/it")
