"""Write a dense model as one GGUF file with the public writer, name tables and quantisers of the gguf package.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf.quants import quantize

from tunekit.errors import ExportError

from .architectures import ARCHITECTURES, Architecture, obstacles
from .vocabulary import Vocabulary

Array = npt.NDArray[Any]
KINDS = ("f32", "bf16", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
HEADS = ("token_embd.weight", "output.weight")
"""Embedding and head: kept in 8 bits at least, since few bits there cost the most."""
FEW_BITS = ("q5_1", "q5_0", "q4_1", "q4_0")
BLOCK = 32
"""Weights of a row that share a scale, in every kind of few bits; a row that they do not divide stays in 16 bits."""


def write_gguf(model: Any, vocabulary: Vocabulary, path: Path, kind: str, name: str) -> dict[str, int]:
    """Write the file; how many tensors there are of each type. Raises ExportError for a model that cannot be."""
    found = list(obstacles(model.config.to_dict()))
    if found:
        raise ExportError(f"the model cannot be written as GGUF: {'; '.join(found)}", "export it merged")
    architecture = ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(path, architecture.name, use_temp_file=True)
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(getattr(gguf.LlamaFileType, _file_type(kind)))
    _add_shape(writer, model.config)
    vocabulary.add_to(writer)
    types: dict[str, int] = {}
    for tensor, values in _tensors(model, architecture):
        stored = _type_of(tensor, values, kind)
        writer.add_tensor(tensor, quantize(values, stored), raw_dtype=stored)
        types[stored.name] = types.get(stored.name, 0) + 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return types


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: Any, architecture: Architecture) -> Iterator[tuple[str, Array]]:
    """Name and float32 values of every tensor; a head that is the embedding is left out, as readers expect."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture.name], model.config.num_hidden_layers)
    tied = model.config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise ExportError(f"GGUF has no name for {name} of this model", "export it merged")
        yield written, _permuted(written, value.detach().float().cpu(), model.config, architecture).numpy()


def _permuted(name: str, value: torch.Tensor, config: Any, architecture: Architecture) -> torch.Tensor:
    """The rows [heads 2 half] of a query or key in the order [heads half 2]."""
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    count = next((number for part, number in heads.items() if part in name), None)
    if count is None or not architecture.permuted:
        return value.contiguous()
    return value.view(count, 2, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape).contiguous()


def _type_of(name: str, values: Array, kind: str) -> gguf.GGMLQuantizationType:
    """How a tensor is stored: vectors in float32, embedding and head in 8 bits where few are asked for."""
    if values.ndim < 2:
        return gguf.GGMLQuantizationType.F32
    asked = "q8_0" if kind in FEW_BITS and name in HEADS else kind
    if asked not in ("f32", "f16", "bf16") and values.shape[-1] % BLOCK:
        asked = "f16"
    if asked == "f16" and float(np.abs(values).max()) > np.finfo(np.float16).max:
        raise ExportError(f"{name} holds values beyond float16", "choose bf16 or f32")
    return gguf.GGMLQuantizationType[asked.upper()]


def _file_type(kind: str) -> str:
    return "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"
