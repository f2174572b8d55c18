"""The section on direct preference optimisation: tunekit and TRL's DPOTrainer on the same pairs, taking turns."""

from __future__ import annotations

from contest import Contest

SECTION = Contest(
    key="dpo",
    data="dpo_en_demo.json",
    names={"tunekit": "tunekit", "trl": "TRL DPOTrainer"},
    variants=dict.fromkeys(("fp32", "bf16"), ("tunekit", "trl")),
    goals={("fp32", "trl"): 2.5, ("bf16", "trl"): 2.5},
    head="""## Preferences

DPO of SmolLM2-135M-Instruct with LoRA of rank 8 on all linear layers, on pairs of `dpo_en_demo.json`, 2 pairs per
micro-batch: the pairs with at most 1,500 characters of prompt and longer answer, so that nobody cuts. Both train on
the same token ids and the same initial adapter, in the same order, and run the model without its adapter as the
reference in every step. Rounds: {rounds}; steps: {steps}, of which the first is not timed; medians over the rounds.""",
    foot="""
Real tokens are those of both answers, each with its prompt, however often the prompt is computed.
In bf16 both stray from the loss in fp32, each by about as much as from the other: a margin is the difference of sums
over hundreds of rounded log-probabilities.
""",
)
