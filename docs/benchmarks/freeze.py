"""The section on freeze tuning: the whole run of tunekit and of a plain Trainer with the same layers frozen."""

from __future__ import annotations

from contest import Contest

SECTION = Contest(
    key="freeze",
    data="alpaca_en_demo.json",
    names={"tunekit": "tunekit", "plain": "transformers.Trainer"},
    variants=dict.fromkeys(("fp32", "bf16"), ("tunekit", "plain")),
    goals={("fp32", "plain"): 2.5, ("bf16", "plain"): 2.5},
    head="""## Freeze tuning

The last 2 of 30 layers of SmolLM2-135M-Instruct train, all else is frozen: 3 epochs over the first rows of
`alpaca_en_demo.json`, 4 rows per micro-batch, cut at 512 tokens, {steps} steps in each epoch. What counts is the whole
run, from opening the model to the saved result, the first pass over the frozen layers included. Rounds: {rounds};
medians.""",
    foot="""
Both train on the same token ids and labels, in the same order in every epoch.
""",
    whole=True,
    times=4,
)
