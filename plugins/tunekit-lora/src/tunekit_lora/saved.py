"""A saved LoRA adapter: its settings, and the adapter that it stands on. Reads files, imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BELOW = "below"
"""The folder, inside that of an adapter, with the one that it stands on."""
STACKED = "stacked.json"
"""Beside an adapter that stands on another: which one that is."""


def read_configuration(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of a saved adapter of any method; empty where the folder holds none."""
    try:
        saved = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}


def read_settings(folder: Path) -> dict[str, Any] | None:
    """PEFT's settings of a saved LoRA adapter; None where the folder holds none."""
    saved = read_configuration(folder)
    return saved if saved.get("peft_type") == "LORA" else None


def is_saved(folder: Path) -> bool:
    """Whether the folder holds a LoRA adapter with its weights."""
    return read_settings(folder) is not None and (folder / WEIGHTS).is_file()


def fingerprint(folder: Path) -> str:
    """Of settings and weights of an adapter, and of those that it stands on.

    What the base is called does not count: an export says it as others know it.
    """
    digest = hashlib.sha256()
    for each in chain_of(folder):
        settings = {**json.loads((each / SETTINGS).read_text(encoding="utf-8")), "base_model_name_or_path": None}
        digest.update(json.dumps(settings, sort_keys=True).encode() + (each / WEIGHTS).read_bytes())
    return digest.hexdigest()


def chain_of(folder: Path) -> Iterator[Path]:
    """The adapter, after those that it stands on."""
    if (folder / STACKED).is_file():
        yield from chain_of(folder / BELOW)
    yield folder


def stands_on(folder: Path) -> str | None:
    """The fingerprint of the adapter below this one; None where it was trained on the model alone."""
    try:
        return str(json.loads((folder / STACKED).read_text(encoding="utf-8"))["fingerprint"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # it stood on something, and no adapter has this fingerprint


def misplaced(folder: Path, held: str | None) -> tuple[str, str] | None:
    """Why an adapter does not belong on weights that hold the adapter `held`, and what to do; None: it does."""
    below = stands_on(folder)
    if below == held:
        return None
    if below is None:
        return "was trained on the model alone", "leave stack out"
    other = ", and use.stack adds none" if held is None else " than use.stack.adapter"
    return f"was trained on top of another adapter{other}", f"set use.stack.adapter: {folder / BELOW}"
