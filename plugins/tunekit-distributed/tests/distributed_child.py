"""What each of two processes does in the tests: `python distributed_child.py WAY FOLDER`, one scenario after the other.

The first process writes what came out. Started without a way, it is the one process that others are compared with.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from tunekit.errors import InterruptedRunError
from tunekit.values import Event, Launch
from tunekit_distributed import Ddp, Distributed, Fsdp, Zero
from tunekit_train import (
    Batch,
    Item,
    Objective,
    Provided,
    ReferenceLogProbs,
    SequenceValues,
    Sums,
    TokenLogProbs,
    TrainConfig,
    train,
)
from tunekit_train.parallel import Parallel
from tunekit_train.testing import CrossEntropy, bundle, context, random_items, tiny_llama, with_lora

WAYS: dict[str, Distributed[Any]] = {
    "ddp": Ddp(),
    "fsdp2": Fsdp(),
    "zero2": Zero(stage=2),
    "zero3": Zero(keep_whole=0),
}
# 19 items are trained on and 5 held out: the last step of an epoch has one micro-batch for two processes, and so has
# the last turn of an evaluation.
OPTIONS: dict[str, Any] = {
    "epochs": 2,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "batch": {"rows": 2, "accumulation": 4},
    "evaluate": {"share": 0.2, "every": 3},
    "checkpoint": {"every": 2},
}


class Preferred(Objective):
    """The first of two answers is likelier than it was for the reference, and the second is not."""

    needs = (TokenLogProbs(), ReferenceLogProbs())

    def weight(self, batch: Batch) -> float:
        """Pairs."""
        return len(batch.items)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """-log sigmoid of how much more the first has gained."""
        policy, reference = provided[self.needs[0]], provided[self.needs[1]]
        gains = torch.zeros(2 * len(batch.items))
        gains = gains.index_add(0, policy.owners, policy.log_probs - reference.log_probs)
        first, second = gains.view(-1, 2).unbind(1)
        return Sums(-logsigmoid(first - second).sum())


class Valued(Preferred):
    """The first of two answers is worth more than the second."""

    needs = (SequenceValues(start="normal"),)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """-log sigmoid of how much more."""
        first, second = provided[self.needs[0]].view(-1, 2).unbind(1)
        return Sums(-logsigmoid(first - second).sum())


class Killed(Exception):
    """A run that ends in the middle, as after a power cut."""


def scenario(model: Any, objective: Any, items: list[Item], folder: Path, parallel: Parallel, kill: int = 0) -> Any:
    """Train; with `kill` stop right after that step, and go on from what was saved."""
    events: list[Event] = []

    def hear(event: Event) -> None:
        events.append(event)
        if kill and not surroundings.resume and event.kind == "step" and event.step == kill:
            raise Killed

    surroundings = replace(context(folder), emit=hear, processes=parallel)
    folder.mkdir(parents=True, exist_ok=True)
    make = model
    if kill:
        try:
            train(objective(), items, bundle(make()), TrainConfig(**OPTIONS), surroundings)
        except (Killed, InterruptedRunError):
            parallel.wait()
        events.clear()
        surroundings = replace(surroundings, resume=True)
    result = train(objective(), items, bundle(make()), TrainConfig(**OPTIONS), surroundings)
    told = [{"kind": event.kind, "step": event.step, **event.metrics} for event in events]
    return {"events": told, "facts": dict(result.facts), "metrics": dict(result.metrics)}


def full() -> Any:
    return tiny_llama(tie_word_embeddings=True)


def lora() -> Any:
    return with_lora(tiny_llama())


def pairs() -> list[Item]:
    singles = [item.sequences[0] for item in random_items(48, longest=12)]
    return [Item(pair) for pair in zip(singles[::2], singles[1::2], strict=True)]


def scenarios(folder: Path, parallel: Parallel) -> dict[str, Any]:
    """Values in a way that has a head only."""
    items, found = random_items(24), {}
    found["full"] = scenario(full, CrossEntropy, items, folder / "full", parallel)
    found["lora"] = scenario(lora, CrossEntropy, items, folder / "lora", parallel)
    found["resumed"] = scenario(full, CrossEntropy, items, folder / "resumed", parallel, kill=3)
    found["reference"] = scenario(lora, Preferred, pairs(), folder / "reference", parallel)
    if parallel.obstacle("value_head") is None:
        found["values"] = scenario(lora, Valued, pairs(), folder / "values", parallel)
    return found


def main() -> None:
    way, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    parallel = Parallel()
    if way != "alone":
        import os

        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        launch = Launch(folder, (), lambda: None, lambda: None, rank, count)
        parallel = WAYS[way].group().join(launch, "cpu")
    found = scenarios(folder, parallel)
    if parallel.first:
        (folder / "found.json").write_text(json.dumps(found))
    parallel.wait()
    parallel.close()


if __name__ == "__main__":
    main()
