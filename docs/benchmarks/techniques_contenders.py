"""The techniques of the page that compares them; `trials` says how each is run."""

from __future__ import annotations

import json
from typing import Any

from contenders import Clock
from trials import Asked, Told, Trial, main

ROWS, LIMIT, HELD_OUT, SEED, RANK = 4, 256, 48, 0, 16
"""Rows of a micro-batch, tokens that a row is cut at, held-out rows, seed, and rank of every adapter."""

LORA = {"lora": {"rank": RANK}}
BF16 = {"compute": "bf16"}
TRIALS = {
    "full": Trial("All weights", {}, 5e-5),
    "freeze": Trial("Freeze, last 3 of 30 layers", {"freeze": {"layers": 3}}, 2e-4),
    "galore": Trial("GaLore, rank 128", {"galore": {"rank": 128}}, 2e-4),
    "lora": Trial("LoRA", LORA, 5e-4),
    "dora": Trial("DoRA", {**LORA, "dora": {}}, 5e-4),
    # The base of PiSSA is what is left of each weight, which bf16 would round.
    "pissa": Trial("PiSSA, base in fp32", {**LORA, "pissa": {}, "precision": {**BF16, "weights": "fp32"}}, 2e-4),
    "qlora": Trial("QLoRA, NF4", {**LORA, "bnb": {"bits": 4}}, 5e-4, needs="bnb"),
    "gptq": Trial(
        "GPTQ-LoRA, 4 bits",
        {**LORA, "gptq": {"bits": 4, "group_size": 64, "samples": 32, "sample_tokens": LIMIT}},
        5e-4,
        needs="gptq",
        library="gptqmodel",
    ),
}
"""Each at a learning rate that suits it; the rows of a page are in this order."""

BEGINNINGS = {"lora": "nothing yet", "qlora": "nothing yet, NF4", "gptq": "nothing yet, GPTQ"}
"""Techniques that begin as the model itself does, and what that is called."""


def run(trial: Trial, asked: Asked) -> Told:
    """Train on the same rows in the same order as all others, and evaluate on the same held-out rows."""
    import tunekit as tk

    count = ROWS * asked.steps
    data = {"path": asked.data, "limit": count + HELD_OUT}
    use = {"precision": BF16, **trial.use}
    pipeline = tk.Pipeline(asked.model, data, use, [{"sft": options_of(trial, asked)}], seed=SEED)
    clock = Clock()
    run = pipeline.run(asked.folder / "run", watchers=[clock.event])
    steps = [line for line in run.metrics if line["kind"] == "step"]
    told = [line["perplexity"] for line in run.metrics if line["kind"] == "evaluated"]
    return {
        "trainable": json.loads((run.folder / "plan.json").read_text())["estimate"]["trainable"],
        "steps": clock.steps([line["loss"] for line in steps], [line["tokens"] for line in steps]),
        "perplexity": told[-1],
        "before": told[0] if asked.trial in BEGINNINGS else None,
    }


def options_of(trial: Trial, asked: Asked) -> dict[str, Any]:
    """The options of the stage. What begins as the model itself, dense or quantised, is evaluated before it learns."""
    share = HELD_OUT / (ROWS * asked.steps + HELD_OUT)
    return {
        "steps": asked.steps,
        "learning_rate": trial.rate,
        "batch": {"rows": ROWS, "max_length": LIMIT},
        "schedule": {"shape": "cosine", "warmup_ratio": 0.1},
        "checkpoint": {"every": 0},
        "evaluate": {"share": share, "every": asked.steps, "at_start": asked.trial in BEGINNINGS},
    }


if __name__ == "__main__":
    main(TRIALS, run)
