"""Which plugins answer a hook when the recipe names none. Names only: the core imports no plugin."""

from __future__ import annotations

DEFAULTS: dict[str, tuple[str, ...]] = {
    "tunekit_precision": ("precision",),
    "tunekit_load_tokenizer": ("transformers",),
    "tunekit_load_model": ("transformers",),
    "tunekit_read_data": ("files",),
    "tunekit_format_data": ("alpaca", "sharegpt", "openai", "preference", "labelled", "prompt", "text"),
    "tunekit_tool_format": ("tools",),
    "tunekit_optimizer": ("adamw",),
    "tunekit_infer_backend": ("transformers",),
}

DISTRIBUTIONS: dict[str, str] = {
    "alpaca": "tunekit-formats",
    "sharegpt": "tunekit-formats",
    "openai": "tunekit-formats",
    "preference": "tunekit-formats",
    "labelled": "tunekit-formats",
    "prompt": "tunekit-formats",
    "text": "tunekit-formats",
    "files": "tunekit-formats",
    "tools": "tunekit-templates",
    "adamw": "tunekit-train",
}
"""Where a default is not called after its distribution."""


def distribution_of(name: str) -> str:
    """The distribution a default plugin comes with, for install lines."""
    return DISTRIBUTIONS.get(name, f"tunekit-{name}")
