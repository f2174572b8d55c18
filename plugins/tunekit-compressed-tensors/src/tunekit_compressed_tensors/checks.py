"""What config.json tells of a compressed checkpoint, and what of it cannot be trained over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunekit.errors import Problem

from . import CompressedTensorsConfig

Stored = Mapping[str, Any]
KEY = "use.compressed-tensors"
PLAIN = "name a copy with plain weights"


def groups(stored: Stored) -> list[Mapping[str, Any]]:
    """The layers that are stored alike: which (`targets`), and how (`weights`, `input_activations`)."""
    return list((stored.get("config_groups") or {}).values())


def problems(config: CompressedTensorsConfig, model: str, stored: Stored | None) -> Iterable[Problem]:
    """Everything about a checkpoint that is in the way."""
    if stored is None:
        what = f"reads weights that are stored compressed, and config.json of {model} says nothing of them"
        yield Problem(KEY, what, "take it out, or name a checkpoint that llm-compressor has written")
        return
    if stored["quant_method"] != "compressed-tensors":
        return  # whose weights they are, the loader tells
    rounded = any(group.get("input_activations") or group.get("output_activations") for group in groups(stored))
    if rounded and not config.plain_inputs:
        what = f"{model} is made to have the inputs of its layers rounded, by an operation without a gradient"
        remedy = f"set {KEY}.plain_inputs: true to train without that rounding, or take one with rounded weights only"
        yield Problem(KEY, what, remedy)
    if config.plain_inputs and not rounded:
        yield Problem(f"{KEY}.plain_inputs", f"means nothing: {model} rounds weights only", "leave it out")
    if stored.get("kv_cache_scheme"):
        yield Problem("model", f"{model} rounds its key-value cache, which cannot be trained through", PLAIN)
    if stored.get("transform_config"):
        yield Problem("model", f"{model} rotates its weights (transform_config), which is not read here", PLAIN)
