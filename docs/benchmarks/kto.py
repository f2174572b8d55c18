"""The section on KTO: tunekit and TRL's KTOTrainer on the same answers, taking turns."""

from __future__ import annotations

from contest import Contest

SECTION = Contest(
    key="kto",
    data="kto_en_demo.json",
    names={"tunekit": "tunekit", "trl": "TRL KTOTrainer"},
    variants=dict.fromkeys(("fp32", "bf16"), ("tunekit", "trl")),
    goals={("fp32", "trl"): 2, ("bf16", "trl"): 2},
    head="""## Single answers, good or bad

KTO of SmolLM2-135M-Instruct with LoRA of rank 8 on all linear layers, on answers of `kto_en_demo.json`, 4 per
micro-batch: those with at most 1,500 characters of prompt and answer, so that nobody cuts. Both train on the same token
ids, the same mismatched answers for the KL term and the same initial adapter, in the same order. Rounds: {rounds};
steps: {steps}, of which the first is not timed; medians over the rounds.""",
    foot="""
Real tokens are those of the answers and of the mismatched ones, each with its prompt.
""",
)
