"""One training run in a process of its own, which kills itself at a chosen point. Run by `test_resume.py`.

Given as globals: `folder`, `point` (None: run to the end), `resume`, `model_kind`, `log_every`, and `data`: how the
items are kept (`memory`, `stored`, `streamed`), and whether they are `packed`, or whether evaluations are `choosing`:
the weights that the stage ends with, its learning rate and its end.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path

import torch

from tunekit.values import MEASURED, Account, Examples, Mixing
from tunekit_train import AdamW, TrainConfig, streaming, train
from tunekit_train.cache import DataCache
from tunekit_train.preparing import prepare_with
from tunekit_train.testing import (
    CrossEntropy,
    WordEncoder,
    bundle,
    context,
    random_items,
    tiny_llama,
    with_lora,
    word_examples,
)

gc.freeze()  # training collects several times, over all modules that are imported by now
sys.modules.setdefault("gptqmodel", None)  # type: ignore[arg-type]  # peft would import it, for a second, to no end
folder: Path = globals()["folder"]
point: str | None = globals()["point"]
resume: bool = globals()["resume"]
full: bool = globals()["model_kind"] == "full"
log_every: int = globals()["log_every"]
data: str = globals()["data"]
streamed, choosing = "streamed" in data, "choosing" in data
metrics = folder / "metrics.jsonl"
PLATEAU = {"shape": "reduce_lr_on_plateau", "plateau_patience": 1, "plateau_factor": 0.5}
TOLD = ("tokens", "micro_batches", "best", "stopped_early_at")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(name: str, when: int) -> None:
    """Die the `when`-th time this is called for the chosen point."""
    if point == name:
        counts[name] = counts.get(name, 0) + 1
        if counts[name] == when:
            die()


counts: dict[str, int] = {}


class Deadly(CrossEntropy):
    """Dies in the second micro-batch of step 4, in the second epoch (step 8), or in the second evaluation."""

    def sums(self, batch, provided):
        if torch.is_grad_enabled():
            counted("mid-accumulation", 8)
            counted("second epoch", 15)
        else:
            counted("evaluation", 3)
        return super().sums(batch, provided)


class DeadlyAdamW(AdamW):
    """Dies while the second checkpoint is being written: its weights are there, its state is not.

    Accelerate asks for the state once before."""

    def tunekit_optimizer(self, **arguments):
        global optimizer
        optimizer = super().tunekit_optimizer(**arguments)
        inner = optimizer.state_dict

        def state_dict():
            counted("checkpoint write", 3)
            return inner()

        optimizer.state_dict = state_dict
        return optimizer


def rename(self: Path, target: Path) -> Path:
    if self.name.startswith("checkpoint-"):
        counted("before the rename", 2)
    return renamed(self, target)


renamed, Path.rename = Path.rename, rename


def record(event) -> None:
    """What the run's record does: keep metrics as lines, cut back to the step resumed from."""
    if event.kind == "started":
        kept = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        metrics.write_text("".join(json.dumps(line) + "\n" for line in kept if line["step"] <= event.step))
    if event.kind in ("step", "evaluated"):
        values = {name: value for name, value in event.metrics.items() if name not in MEASURED}
        with metrics.open("a") as lines:
            lines.write(json.dumps({"kind": event.kind, "step": event.step, **values}) + "\n")
    if event.kind == "saved":
        (folder / "saved").open("a").write(f"{event.step}\n")


def noisy_embeddings(module, arguments, output):
    """NEFTune's noise, drawn from the same generator as dropout."""
    return output + torch.zeros_like(output).uniform_(-0.1, 0.1) if module.training else output


def items():
    if streamed:
        streaming.CHUNK = 4
        examples = Examples.of(word_examples(20, seed=3), "data", Mixing(streaming=True, buffer=6))
        return prepare_with(WordEncoder(max_length=9), examples, frozenset({"text"}), context(folder))
    if "stored" in data:
        cache = DataCache(folder / "cache")
        return cache.find("key") or cache.make("key", random_items(26, seed=3), Account())
    return random_items(26, seed=3)


model = tiny_llama(attention_dropout=0.1)
model.get_input_embeddings().register_forward_hook(noisy_embeddings)
model = model if full else with_lora(model, dropout=0.1)
config = TrainConfig(
    epochs=2,
    learning_rate=0.05 if choosing else 1e-2,
    weight_decay=0.1,
    steps=12 if streamed else None,
    batch={"rows": 2, "accumulation": 2, "max_length": 24, "packing": "greedy" if "packed" in data else "none"},
    schedule=PLATEAU if choosing else {"shape": "cosine", "warmup_steps": 2},
    checkpoint={"every": 3, "keep": 2, "best": choosing},
    evaluate={} if streamed else {"share": 0.2, "every": 1 if choosing else 4, "at_start": choosing},
    early_stopping={"patience": 6 if choosing else None},
    log={"every": log_every},
)
result = train(
    Deadly(),
    items(),
    bundle(model),
    config,
    context(folder, plugin=DeadlyAdamW(), emit=record, resume=resume),
)
torch.save(optimizer.state_dict(), folder / "optimizer.pt")
(folder / "result.json").write_text(json.dumps({name: result.facts.get(name) for name in TOLD}))
