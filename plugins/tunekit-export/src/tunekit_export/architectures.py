"""The models that are written as GGUF, by transformers' name of their kind, and what about one of them cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Architecture:
    """A kind of model as GGUF names it. `permuted`: query and key rows are written in the order of pairs.

    transformers turns the first half of a head against its second; GGUF's llama turns neighbours against each other.
    """

    name: str
    permuted: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", permuted=True),
    "mistral": Architecture("llama", permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}
QWEN3_HEAD = 128
"""The width of a head of every published Qwen 3, which transformers takes for granted in a file."""


def obstacles(config: Mapping[str, Any]) -> Iterator[str]:
    """What about a model, by its config as plain data, cannot be written as GGUF here."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        yield f"its architecture is {kind}, and {', '.join(ARCHITECTURES)} can be written"
        return
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling != "default":
        yield f"its positions are scaled ({scaling}), which is not written"
    window, length = config.get("sliding_window"), config.get("max_position_embeddings", 0)
    if window and window < length and config.get("use_sliding_window", kind == "mistral"):
        yield f"its attention slides over {window} tokens, which is not written"
    if kind == "qwen3" and config.get("head_dim") != QWEN3_HEAD:
        yield f"its heads are not {QWEN3_HEAD} wide, and transformers reads no other Qwen 3 from GGUF to compare with"
    if config.get("mlp_bias"):
        yield "its feed-forward layers have biases, which are not written"
