"""The optimisers of the page that compares their states; `trials` says how each is run."""

from __future__ import annotations

from typing import Any

import states
from trials import HERE, Asked, Told, Trial, main

ROWS = 2
WHOLE: dict[str, dict[str, Any]] = {}
TRIALS = {
    "adamw": Trial("AdamW", WHOLE),
    "schedule-free": Trial("schedule-free AdamW", {"schedule-free": {}}, needs="schedule-free"),
    "ademamix": Trial("AdEMAMix, 8-bit (bitsandbytes)", {"bnb-optimizer": {"kind": "ademamix"}}, needs="bnb-optimizer"),
    "muon": Trial("Muon", {"muon": {}}, needs="muon"),
    "adam-mini": Trial("Adam-mini", {"adam-mini": {}}, needs="adam-mini"),
    "galore": Trial("GaLore, rank 128", {"galore": {"rank": 128}}, needs="galore"),
    "apollo": Trial("APOLLO, rank 128", {"apollo": {"rank": 128}}, needs="apollo"),
    "apollo-mini": Trial(
        "APOLLO-Mini, rank 1", {"apollo": {"rank": 1, "granularity": "tensor", "scale": 128}}, needs="apollo"
    ),
    "bnb": Trial("AdamW, 8-bit (bitsandbytes)", {"bnb-optimizer": {}}, needs="bnb-optimizer"),
    "torchao-8": Trial("AdamW, 8-bit (torchao)", {"torchao-optimizer": {}}, needs="torchao-optimizer"),
    "torchao-4": Trial("AdamW, 4-bit (torchao)", {"torchao-optimizer": {"states": "4bit"}}, needs="torchao-optimizer"),
    "lion": Trial("Lion, 8-bit (bitsandbytes)", {"bnb-optimizer": {"kind": "lion"}}, needs="bnb-optimizer"),
    "badam": Trial("BAdam, its largest block: the embedding", {"badam": {"order": "ascending"}}, needs="badam"),
    "badam-layers": Trial(
        "BAdam, the embedding frozen",
        {"badam": {"order": "ascending"}, "full": {"freeze_embeddings": True}},
        needs="badam",
    ),
    "lora": Trial("AdamW on LoRA of rank 16", {"lora": {"rank": 16}}),
    "loraplus": Trial("LoRA+ on the same", {"lora": {"rank": 16}, "loraplus": {}}, needs="loraplus"),
}


def run(trial: Trial, asked: Asked) -> Told:
    """Train for a few steps, and count what the optimiser keeps after the last."""
    import tunekit as tk

    stage = {
        "steps": asked.steps,
        "learning_rate": trial.rate,
        "batch": {"rows": ROWS, "max_length": 256},
        "checkpoint": {"every": 0},
    }
    data = {"path": asked.data, "limit": ROWS * asked.steps}
    use = {**trial.use, "precision": {"compute": "bf16"}, f"{HERE / 'states.py'}:States": {}}
    pipeline = tk.Pipeline(asked.model, data, use, [{"sft": stage}], seed=0)
    estimate = pipeline.plan().estimate
    assert estimate is not None, "a plan has an estimate"
    pipeline.run(asked.folder / "run")
    measured = states.read(asked.folder / "run")
    return {"state_bytes": measured, "estimated": estimate.memory["optimiser"], "trainable": estimate.trainable}


if __name__ == "__main__":
    main(TRIALS, run)
