"""A tiny model, and a run's context around any plugins, for the tests of this distribution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tunekit.calls import Calls
from tunekit.values import Context, Machine, ModelBundle, PlannedPlugin, Precision

FP32 = Precision("cpu", "float32", "float32", "float32", "a test")
MIXED = Precision("cpu", "bfloat16", "bfloat16", "float32", "a test")
MACHINE = Machine("Linux", "3.11", "a test", 2, 2**34)


def llama_config(tied: bool = False) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )


def calls_of(*plugins: Any) -> Calls:
    return Calls([PlannedPlugin(type(p).__name__.lower(), p, "d", "0", "named", "use") for p in plugins])


@pytest.fixture
def bundle_of() -> Callable[..., ModelBundle]:
    """A random two-layer Llama, the same every time."""

    def make(precision: Precision = FP32, tied: bool = False, **changes: Any) -> ModelBundle:
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(llama_config(tied)).to(getattr(torch, precision.weights))
        return ModelBundle(model, None, "tiny", precision, **changes)

    return make


@pytest.fixture
def context_of(tmp_path: Path) -> Callable[..., Context]:
    """The context of a run with these plugins."""

    def make(*plugins: Any, seed: int = 0, precision: Precision = FP32) -> Context:
        return Context(calls_of(*plugins), MACHINE, precision, tmp_path, seed, lambda event: None)

    return make


@pytest.fixture
def ids() -> torch.Tensor:
    """int64[batch seq]"""
    return torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(3))


def train_(model: Any, ids: torch.Tensor, steps: int = 5, learning_rate: float = 1e-2) -> list[float]:
    """Train whatever requires a gradient, and give the losses."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.fixture
def train() -> Callable[..., list[float]]:
    return train_


@pytest.fixture
def logits(ids: torch.Tensor) -> Callable[[Any], torch.Tensor]:
    """float32[batch seq vocab] of a model in evaluation mode."""

    def compute(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=ids).logits.float()  # type: ignore[no-any-return]

    return compute


@pytest.fixture
def estimate_with() -> Callable[..., Any]:
    """The estimate of these plugins for a tiny model, the loader's part filled in."""
    from types import SimpleNamespace

    from tunekit.values import Estimate, EstimateRequest, LoadRequest

    def make(*plugins: Any, precision: Precision = FP32, tied: bool = False) -> Estimate:
        with torch.device("meta"):
            skeleton = transformers.LlamaForCausalLM(llama_config(tied))
        skeleton = skeleton.to(getattr(torch, precision.weights))
        total = sum(p.numel() for p in skeleton.parameters())
        size = {"float32": 4, "bfloat16": 2}[precision.weights]
        start = Estimate(total, total, {"weights": total * size}, skeleton=skeleton)
        calls = calls_of(*plugins)
        request = EstimateRequest(SimpleNamespace(), LoadRequest("tiny", precision), calls=calls)  # type: ignore[arg-type]
        return calls.chain("tunekit_estimate", "estimate", start, request=request)  # type: ignore[no-any-return]

    return make
