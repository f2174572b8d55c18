"""The section on PPO's update phase: one base model and one pass, against four models and separate passes."""

from __future__ import annotations

from contest import OURS, Contest, Run, Runs

WEIGHTS_GOAL = 0.25


class UpdateContest(Contest):
    """A contest that also compares the weights that are held."""

    def page(self, results: Run) -> str:
        """The section of the page, with a table of the weights."""
        runs: Runs = results["runs"]
        lines = ["| dtype | contender | weights held | our share | goal |", "|---|---|---:|---:|---:|"]
        for variant, contenders in runs.items():
            ours = contenders[OURS][0]["weight_bytes"]
            for name, found in contenders.items():
                held = found[0]["weight_bytes"]
                compared = " |  |" if name == OURS else f" {ours / held:.0%} | {WEIGHTS_GOAL:.0%} |"
                lines.append(f"| {variant} | {self.names[name]} | {held / 2**20:,.0f} MiB |{compared}")
        return super().page(results) + "\n".join(["", *lines, ""])


SECTION = UpdateContest(
    key="ppo",
    data="alpaca_en_demo.json",
    names={"tunekit": "tunekit", "separate": "four models, separate passes"},
    variants=dict.fromkeys(("fp32", "bf16"), ("tunekit", "separate")),
    goals={("fp32", "separate"): 2, ("bf16", "separate"): 2},
    times=4,
    head="""## PPO, the update phase

Policy and values of SmolLM2-135M-Instruct with LoRA of rank 8 on all linear layers learn from the 16 answers of one
rollout, of at most 64 tokens each, to prompts of `alpaca_en_demo.json`, 4 per step. Both contenders are given the same
answers with the same old log-probabilities, values, advantages and returns, and minimise the same loss of the same
adapter and the same value head. The peer is written as PPO usually is: a model each for policy, values, reference and
reward; padded rows; logits at all positions; values by a pass of their own. TRL has no PPO any more. Gathering the
answers is not timed. Rounds: {rounds}; steps: {steps}, of which the first is not timed; medians over the rounds.""",
    foot="""
Real tokens are those of prompts and answers. Weights held are the bytes of all parameters and buffers alive in the
process at the last step, each storage counted once: base, adapters and heads of ours, with a trained reward adapter.
""",
)
