"""The contenders of PPO's update phase; `contenders` says how each is run."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contenders
from contenders import RANK, RATE, SEED, Clock, Told, Work, main, opened, with_lora

ROWS, PROMPTS, ANSWER = 4, 16, 64
"""Answers of a step, answers of the rollout, most tokens of an answer."""
CLIP, VALUE_WEIGHT = 0.2, 0.1
RECORDED = "answers.json"
PAIRS = [{"prompt": "Hello!", "chosen": "Hello, how can I help?", "rejected": "What?"}] * 2
"""What the reward adapter has learnt from: here it is only to be there, and to value answers somehow."""


def judge(work: Work) -> str:
    """The folder of a reward adapter."""
    import tunekit as tk

    options = {"steps": 1, "batch": {"rows": 2}, "checkpoint": {"every": 0}, "evaluate": {"share": 0}}
    use = {"lora": {"rank": RANK}, "precision": work.precision}
    run = tk.Pipeline(work.model, PAIRS, use, [{"reward": options}], seed=SEED).run(work.folder / "judge")
    return str(run.adapter)


def asked(work: Work) -> dict[str, Any]:
    """The options of our stage besides those that all contenders share."""
    rollout = {"prompts": PROMPTS, "epochs": work.steps * ROWS // PROMPTS, "max_new_tokens": ANSWER, "batch": PROMPTS}
    losses = {"clip": CLIP, "value_clip": CLIP, "value_coefficient": VALUE_WEIGHT}
    return {"rollout": rollout, "reward": {"adapter": judge(work)}, "evaluate": {"share": 0}, **losses}


def prompts(work: Work) -> dict[str, Any]:
    """As many prompts as are answered."""
    return {"path": work.data, "limit": PROMPTS}


def tunekit(work: Work) -> Told:
    """Our own, through the front door; gathering the answers falls into the first step, which is not timed."""
    held: list[int] = []

    def weigh(event: Any) -> None:
        if event.kind == "step" and event.step == work.steps:
            held.append(held_bytes())

    told = contenders.tunekit(work, data=prompts(work), watchers=[weigh], **asked(work))
    return {**told, "weight_bytes": held[0]}


def separate(work: Work) -> Told:
    """The same mathematics with four models: the usual way."""
    recorded = work.folder / "recorded"
    told = {"model": work.model, "variant": work.variant, "data": work.data, "steps": work.steps}
    command = [sys.executable, __file__, "record", json.dumps({**told, "folder": str(recorded)})]
    subprocess.run(command, check=True, capture_output=True)
    batches = json.loads(next(recorded.rglob(RECORDED)).read_text())
    return FourModels.made(work).learn(batches, work)


@dataclass(frozen=True)
class FourModels:
    """Policy, values, reference and reward, each a model of its own; policy and values train the same adapter.

    Reference and reward take part in gathering answers only. Here they are held, as they are in training.
    """

    policy: Any
    values: Any
    head: Any
    reference: Any
    reward: Any
    padding: int

    @classmethod
    def made(cls, work: Work) -> FourModels:
        """Load the model four times."""
        from tunekit_train import ValueHead

        (policy, tokenizer), (values, _), (reference, _), (reward, _) = (opened(work) for _ in range(4))
        policy, values = with_lora(policy), with_lora(values)
        shared = dict(policy.named_modules())
        for name, module in values.named_modules():
            if "lora_" in name and hasattr(module, "weight"):
                module.weight = shared[name].weight
        head = ValueHead(policy.config.hidden_size)
        return cls(policy, values, head, reference, reward, tokenizer.pad_token_id)

    def learn(self, batches: Sequence[Sequence[Any]], work: Work) -> Told:
        """Take a step on each batch."""
        import torch

        trained = [each for each in self.policy.parameters() if each.requires_grad] + list(self.head.parameters())
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
        clock, losses, tokens = Clock(), [], []
        clock.tick()
        for rows in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=work.bf16):
                loss = self.loss(rows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            clock.tick()
            losses.append(float(loss.detach()))
            tokens.append(float(sum(len(row["ids"]) for row in rows)))
        return {"steps": clock.steps(losses, tokens), "weight_bytes": held_bytes()}

    def loss(self, rows: Sequence[Any]) -> Any:
        """The clipped losses of policy and values, a mean over answer tokens."""
        import torch

        ids = _padded([row["ids"] for row in rows], self.padding)
        mask = _padded([[1] * len(row["ids"]) for row in rows], 0)
        answers = _padded([row["weights"] for row in rows], 0.0)[:, 1:] > 0
        old, kept, advantages, returns = (
            torch.tensor([number for row in rows for number in row[name]])
            for name in ("log_probs", "values", "advantages", "returns")
        )
        logits = self.policy(input_ids=ids, attention_mask=mask).logits[:, :-1]
        spoken = torch.log_softmax(logits.float(), -1).gather(2, ids[:, 1:, None])[..., 0][answers]
        hidden = self.values.get_base_model().model(input_ids=ids, attention_mask=mask).last_hidden_state
        values = self.head(hidden[:, :-1])[answers]
        ratio = (spoken - old).exp()
        policy = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        held = kept + (values - kept).clamp(-CLIP, CLIP)
        value = 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)
        return (policy + VALUE_WEIGHT * value).mean()


def _padded(rows: Sequence[Sequence[float]], padding: float) -> Any:
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, padding)


def held_bytes() -> int:
    """Bytes of all parameters and buffers of all modules alive in this process, each storage once."""
    import torch

    gc.collect()
    modules = [each for each in gc.get_objects() if isinstance(each, torch.nn.Module)]
    tensors = [tensor for each in modules for tensor in (*each.parameters(False), *each.buffers(False))]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def record(told: str) -> None:
    """Gather the answers of the rollout that our own contender learns from, and write them down."""
    import tunekit as tk

    given = json.loads(told)
    folder = Path(given.pop("folder"))
    work = Work(**given, folder=folder, stage="ppo", rows=ROWS)
    options = work.options(**{**asked(work), "steps": 1})
    use = {"lora": {"rank": RANK}, "precision": work.precision}
    stage = f"{Path(__file__).parent / 'ppo_recorded.py'}:Recorded"
    tk.Pipeline(work.model, prompts(work), use, [{stage: options}], seed=SEED).run(folder / "run")


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record(sys.argv[2])
    else:
        main("ppo", ROWS, {"tunekit": tunekit, "separate": separate})
