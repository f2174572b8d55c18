"""A compressed checkpoint to test with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .producing import compress_


def make_checkpoint(dense: Path, folder: Path, bits: int = 4, group: int = 32) -> Path:
    """Write the dense model of a folder compressed into `folder`, with its tokenizer."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    compress_(auto.from_pretrained(dense), folder, bits, group)
    for path in dense.glob("*token*"):
        shutil.copy(path, folder)
    for path in dense.glob("*.jinja"):
        shutil.copy(path, folder)
    return folder
