"""DoRA: a low-rank adapter that trains the length of each row of a weight apart from its direction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tunekit.errors import PlanError, Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Machine, Plan

__all__ = ["Dora", "DoraConfig"]


class DoraConfig(PluginConfig):
    """DoRA has no options of its own; rank, scale and targets are LoRA's."""


class Dora(Plugin[DoraConfig]):
    """Weight-decomposed low-rank adaptation (DoRA, arXiv 2402.09353), as a variant of the planned LoRA."""

    requires = frozenset({"adapter.lora"})
    provides = frozenset({"adapter.dora"})
    after = frozenset({"adapter.start"})  # row lengths are those of the weights that the adapter starts with

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a stage that begins with a saved adapter without row lengths: it would train as it is."""
        from tunekit_lora.saved import read_settings

        for stage in plan.stages_with(self):
            saved = None if stage.start is None else read_settings(stage.start)
            if saved is not None and not saved.get("use_dora"):
                what = f"{stage.start} was trained without dora, and has no lengths of rows to train on"
                yield Problem(f"{stage.key}.adapter.start", what, "leave dora out, or start fresh")

    @hookimpl
    def tunekit_lora_config(self, config: Any) -> Any:
        """Ask PEFT for magnitude vectors beside the low-rank factors."""
        if config.target_parameters:
            what = f"dora measures the rows of layers, and {config.target_parameters[0]} is a parameter"
            raise PlanError([Problem("use.lora.parameters", what, "leave it out, or train plain LoRA")])
        return replace(config, use_dora=True)

    @hookimpl
    def tunekit_lora_attached(self, model: Any) -> Any:
        """Measure the row lengths of the adapter that has just been attached again, in the dtype they train in.

        PEFT measures them in the dtype of the base: in bfloat16 that is wrong by up to 0.2%, and the adapter would
        not start as the identity.
        """
        for module in model.modules():
            for name, magnitude in getattr(module, "lora_magnitude_vector", {}).items():
                if name not in module.active_adapters:
                    continue  # it has learnt its own
                dtype = magnitude.weight.dtype
                factors = {key: _factor(module, key, name) for key in ("lora_A", "lora_B")}
                magnitude.update_layer(base_layer=module.get_base_layer(), scaling=module.scaling[name], **factors)
                magnitude.weight.data = magnitude.weight.data.to(dtype)
        return model


def _factor(module: Any, key: str, name: str) -> Any:
    """One low-rank factor [rank in] or [out rank]; embeddings keep theirs elsewhere, the other way round."""
    linear = getattr(module, key)
    return linear[name].weight if name in linear else getattr(module, key.replace("lora_", "lora_embedding_"))[name]
