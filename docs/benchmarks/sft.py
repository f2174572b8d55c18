"""The section on supervised fine-tuning: tunekit, a plain Trainer and TRL on the same rows, taking turns."""

from __future__ import annotations

from contest import Contest

ALL = ("tunekit", "plain", "trl", "trl_padding_free", "trl_packing")
SECTION = Contest(
    key="sft",
    data="alpaca_en_demo.json",
    names={
        "tunekit": "tunekit",
        "plain": "transformers.Trainer",
        "trl": "TRL SFTTrainer",
        "trl_padding_free": "TRL, padding-free",
        "trl_packing": "TRL, packing",
    },
    variants={"fp32": ALL, "bf16": ALL, "default": ALL[:3]},
    goals={
        ("fp32", "plain"): 2.2,
        ("bf16", "plain"): 3,
        ("default", "plain"): 6,
        ("fp32", "trl"): 3,
        ("fp32", "trl_padding_free"): 3,
        ("fp32", "trl_packing"): 3,
        ("bf16", "trl"): 3,
        ("bf16", "trl_padding_free"): 3,
        ("bf16", "trl_packing"): 3,
        ("default", "trl"): 4,
    },
    memory_goals={("fp32", "plain"): 0.6, ("bf16", "plain"): 0.6},
    head="""## Supervised fine-tuning

Supervised fine-tuning of SmolLM2-135M-Instruct with LoRA of rank 8 on all linear layers, on rows of
`alpaca_en_demo.json`, 4 rows per micro-batch, cut at 512 tokens. Every contender trains on the same token ids, the
same labels and the same initial adapter, in the same order. Rounds: {rounds}; steps: {steps}, of which the first is
not timed; medians over the rounds.""",
    foot="""
Real tokens are those of the data; padding does not count. `fp32` and `bf16` give everybody the same dtype; `default`
is what each does when nothing is said: fp32 for the plain Trainer, bf16 with activation checkpointing for TRL, bf16 for
tunekit on this processor. TRL's packing fills bins of 512 tokens, two to a step, so its steps hold other rows. Peak
memory is that of the whole process, libraries included. The last column is the largest difference of any step's loss to
tunekit's. The goals are those this project set itself.
""",
)
