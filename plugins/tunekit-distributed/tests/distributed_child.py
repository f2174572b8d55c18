"""What each of two processes does in the tests: `python distributed_child.py WAY FOLDER`, one scenario after the other.

The first process writes what came out: a process costs more to start than all that it then does. The one process that
others are compared with is that of the tests, which calls `scenarios`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.functional import logsigmoid

from tunekit.errors import InterruptedRunError
from tunekit.values import Event, Examples, Launch, Mixing, TokenSequence
from tunekit_distributed import Ddp, Distributed, Fsdp, Zero
from tunekit_dpo import Dpo
from tunekit_kto import Kto
from tunekit_kto.mismatch import MismatchedItems
from tunekit_train import (
    Batch,
    Item,
    Items,
    Objective,
    Provided,
    ReferenceLogProbs,
    SequenceValues,
    Sum,
    Sums,
    TokenLogProbs,
    TrainConfig,
    train,
)
from tunekit_train.parallel import Parallel
from tunekit_train.preparing import prepare_with
from tunekit_train.testing import (
    VOCABULARY,
    CrossEntropy,
    WordEncoder,
    bundle,
    context,
    random_items,
    tiny_llama,
    with_lora,
    word_examples,
)

WAYS: dict[str, Distributed[Any]] = {
    "ddp": Ddp(),
    "fsdp2": Fsdp(),
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
APART = __name__ == "__main__"
FEW_LOGITS = 7 * VOCABULARY
"""Logits that a head in parts makes at once: two parts for most batches, and not the same number in each process."""


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


class Baseline(Objective):
    """Raises what is likelier than its batch is on average, and than the run was so far: coupled, and with a state."""

    couples_batch = True
    needs = (TokenLogProbs(),)

    def __init__(self) -> None:
        self.mean = torch.zeros(())

    def weight(self, batch: Batch) -> float:
        """Sequences."""
        return len(batch.sequences)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """By how much."""
        likely = provided[self.needs[0]].sums(len(batch.sequences))
        gain = likely.detach() - 0.5 * likely.detach().mean() - 0.5 * self.mean
        told = {"likely": Sum(float(likely.detach().sum()), len(likely))}
        return Sums(-(gain.tanh() * likely).sum(), told)

    def observe(self, metrics: Mapping[str, Sum]) -> None:
        """Move towards the mean of a step, over all processes."""
        total, weight = metrics["likely"]
        self.mean = 0.5 * self.mean + 0.5 * total / weight

    def state(self) -> dict[str, Any]:
        """The mean."""
        return {"mean": self.mean}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The mean."""
        self.mean = state["mean"]


class Killed(Exception):
    """A run that ends in the middle, as after a power cut."""


def scenario(
    parallel: Parallel, folder: Path, model: Any, objective: Callable[[], Any], items: Any, **options: Any
) -> dict[str, Any]:
    """Train; with `kill` stop right after that step, and go on from what was saved. Options go over the usual ones."""
    if APART:
        gc.freeze()  # training collects several times, over all modules that are imported by now
    kill, events = options.pop("kill", 0), list[Event]()

    def hear(event: Event) -> None:
        events.append(event)
        if kill and not surroundings.resume and event.kind == "step" and event.step == kill:
            raise Killed

    surroundings, config = (
        replace(context(folder), emit=hear, processes=parallel),
        TrainConfig(**{**OPTIONS, **options}),
    )
    folder.mkdir(parents=True, exist_ok=True)
    if kill:
        try:
            train(objective(), items, bundle(model()), config, surroundings)
        except (Killed, InterruptedRunError):
            parallel.wait()
        events.clear()
        surroundings = replace(surroundings, resume=True)
    result = train(objective(), items, bundle(model()), config, surroundings)
    told = [{"kind": event.kind, "step": event.step, **event.metrics} for event in events]
    return {"events": told, "facts": dict(result.facts), "metrics": dict(result.metrics)}


def full() -> Any:
    return tiny_llama(tie_word_embeddings=True)


def lora() -> Any:
    return with_lora(tiny_llama())


def pairs() -> list[Item]:
    """A prompt each, and two answers to it."""
    dice = Random(0)

    def tokens(least: int, most: int) -> list[int]:
        return [dice.randrange(3, VOCABULARY) for _ in range(dice.randint(least, most))]

    def answer(prompt: list[int], row: int) -> TokenSequence:
        said = tokens(1, 8)
        return TokenSequence(prompt + said, [0.0] * len(prompt) + [1.0] * len(said), row, f"row {row}")

    return [
        Item((answer(prompt, row), answer(prompt, row))) for row, prompt in enumerate(tokens(2, 6) for _ in range(24))
    ]


def judged() -> list[Item]:
    """Answers that are good or bad, each with that of another prompt."""
    items = [replace(item, label=number % 3 != 0) for number, item in enumerate(random_items(24, longest=12))]
    return list(MismatchedItems(Items(items), seed=0, max_length=30))


def streamed() -> Any:
    """Documents that are read while they are trained on."""
    data = Examples.of(word_examples(40), "data", Mixing(streaming=True, buffer=5))
    return prepare_with(WordEncoder(max_length=20), data, frozenset({"text"}), context(Path()))


NO_EVALUATION = {"evaluate": {}, "checkpoint": {"every": 0}}
BEST = {
    "learning_rate": 3e-2,
    "steps": 12,
    "evaluate": {"share": 0.2, "every": 1},
    "checkpoint": {"every": 2, "best": True},
    "early_stopping": {"patience": 3},
    "schedule": {"shape": "reduce_lr_on_plateau", "plateau_patience": 0, "plateau_factor": 0.5},
}


def scenarios(folder: Path, parallel: Parallel) -> dict[str, Any]:
    """What holds in a way, one after the other."""
    items, found = random_items(24), {}

    def see(name: str, *given: Any, **options: Any) -> None:
        found[name] = scenario(parallel, folder / name, *given, **options)

    chunks = "never" if parallel.obstacle("chunked_head") else "always"
    packed = {"rows": 1, "accumulation": 4, "packing": "greedy", "max_length": 40}
    with patch("tunekit_train.chunked.CHUNK_LOGITS", FEW_LOGITS):
        see("full", full, CrossEntropy, items)
        see("resumed", full, CrossEntropy, items, kill=3)
        transported = Dpo(loss="aot").objective  # its terms depend on the other pairs of a micro-batch
        see("reference", lora, transported, pairs())
        see("reference_resumed", lora, transported, pairs(), kill=3)
        compute = {"chunked_head": chunks, "checkpointing": "always"}
        see("laid", lora, Preferred, pairs(), batch=packed, compute=compute, **NO_EVALUATION)
        see("coupled", lora, Kto().objective, judged(), **NO_EVALUATION)
        budget = {"tokens": 40, "accumulation": 4}
        see("streamed", full, Baseline, streamed(), steps=4, batch=budget, **NO_EVALUATION)
        if parallel.obstacle("value_head") is None:
            see("values", lora, Valued, pairs(), **NO_EVALUATION)
        if parallel.obstacle("best") is None:
            see("best", full, CrossEntropy, items, **BEST)
            see("heads", full, CrossEntropy, items, compute={"chunked_head": chunks}, **NO_EVALUATION)
        if parallel.obstacle("compile") is None:
            compiled = {"compile": True, "compile_backend": "eager"}
            see("compiled", full, CrossEntropy, items, steps=2, compute=compiled, **NO_EVALUATION)
    return found


def main() -> None:
    from options_child import looks, models_of

    way, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    launch = Launch(folder, (), lambda: None, lambda: None, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    parallel = WAYS[way].group().join(launch, "cpu")
    models = models_of(way)
    found = scenarios(folder, parallel)
    options = looks(way, folder, launch, models)
    if parallel.first:
        (folder / "found.json").write_text(json.dumps({"scenarios": found, "options": options}))
    parallel.wait()
    parallel.close()


if __name__ == "__main__":
    main()
