"""Models on disk for the tests of this distribution: folders and a small GGUF file, made in code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunekit.testing.fixtures import hub_cache  # noqa: F401
from tunekit.testing.runs import run_context
from tunekit.testing.tiny import FP32, save_tiny_model, tiny_bundle, tiny_model, tiny_tokenizer
from tunekit.values import LoadRequest, ModelBundle
from tunekit_transformers import Transformers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model saved as safetensors."""
    return save_tiny_model(tmp_path / "model")


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., ModelBundle]:
    """Load a model with these options of the plugin; `request` holds other fields of the request."""

    def load(model: str | Path, request: dict[str, Any] | None = None, **options: Any) -> ModelBundle:
        plugin = Transformers(**options)
        context = run_context(plugin, folder=tmp_path)
        asked = LoadRequest(**{"model": str(model), "precision": FP32, **(request or {})})
        tokenizer = plugin.tunekit_load_tokenizer(asked, context)
        return plugin.tunekit_load_model(replace(asked, tokenizer=tokenizer), context)

    return load


@pytest.fixture
def backend(tmp_path: Path) -> Callable[..., Any]:
    """A backend over this bundle, the tiny one if none is given."""

    def make(bundle: ModelBundle | None = None, **options: Any) -> Any:
        plugin = Transformers(**options)
        return plugin.tunekit_infer_backend(bundle or tiny_bundle(), run_context(plugin, folder=tmp_path))

    return make


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """The tiny model as a GGUF file in full precision."""
    return _write_gguf(tmp_path / "tiny.gguf", quantised=False)


@pytest.fixture
def quantised_file(tmp_path: Path) -> Path:
    """The tiny model as a GGUF file whose matrices are Q8_0."""
    return _write_gguf(tmp_path / "tiny-q8.gguf", quantised=True)


def _write_gguf(path: Path, quantised: bool) -> Path:
    """Write a GGUF file with the library that llama.cpp's own converter uses."""
    import gguf

    model, tokenizer = tiny_model(), tiny_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    for name, tensor in model.state_dict().items():
        values = _llama_cpp_order(name, tensor, config).float().numpy()
        quantise = quantised and tensor.dim() == 2 and "embed" not in name
        kind = gguf.GGMLQuantizationType.Q8_0 if quantise else gguf.GGMLQuantizationType.F32
        writer.add_tensor(_gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, tokenizer: Any, size: int) -> None:
    import json

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    tokens += [f"<unused{index}>" for index in range(size - len(tokens))]
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def _gguf_name(name: str) -> str:
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    stem = name.removesuffix(".weight")
    if stem in names:
        return f"{names[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{parts[part]}.weight"


def _llama_cpp_order(name: str, tensor: Any, config: Any) -> Any:
    """Interleave the two halves of each head of queries and keys, as llama.cpp stores them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if part in name), None)
    if count is None:
        return tensor
    rows, columns = tensor.shape
    return tensor.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
