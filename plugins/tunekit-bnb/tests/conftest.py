"""A tiny dense checkpoint, loaded through whatever a plugin asks of the loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tunekit.values import LoadRequest, ModelBundle, Precision

FP32 = Precision("cpu", "float32", "float32", "float32", "a test")


def llama_config() -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama on disk."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(llama_config()).save_pretrained(path)
    return path


@pytest.fixture
def dense(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def load(folder: Path) -> Callable[..., ModelBundle]:
    """Load the checkpoint as the loader would for this plugin, without its patch."""

    def make(plugin: Any, precision: Precision = FP32) -> ModelBundle:
        quantization = plugin.tunekit_quantize(request=LoadRequest(str(folder), precision))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, precision.weights), **quantization.arguments
        )
        return ModelBundle(model, None, str(folder), precision, quantization)

    return make


@pytest.fixture
def skeleton() -> Any:
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(llama_config())


@pytest.fixture
def ids() -> torch.Tensor:
    """int64[batch seq]"""
    return torch.randint(0, 512, (2, 16), generator=torch.Generator().manual_seed(3))
