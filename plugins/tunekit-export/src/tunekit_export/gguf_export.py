"""The GGUF target: written by us, read again by transformers, its tokenizer too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tunekit.errors import ExportError
from tunekit.exporting import shown_model
from tunekit.values import Exported, ExportRequest, ModelBundle
from tunekit_transformers.comparing import verify
from tunekit_transformers.conversion import reading_gguf

from .gguf_file import write_gguf
from .merged import reader, refuse_quantized
from .vocabulary import Vocabulary, vocabulary_of

if TYPE_CHECKING:
    from . import GgufConfig as Options

UNREAD_SPLITS = ("smollm",)
"""Rules of cutting text that llama.cpp knows by name and transformers takes for another."""


def export_gguf(config: Options, bundle: ModelBundle, request: ExportRequest) -> Exported:
    """Write the file, and have transformers read it."""
    path, facts = write_file(config, bundle, request)
    found = verify(bundle, request, lambda: read_gguf(path), reader())
    usage = f"## Use\n\n```sh\nllama-cli -m {path.name}\n```"
    return Exported(found, facts, usage)


def write_file(config: Options, bundle: ModelBundle, request: ExportRequest) -> tuple[Path, dict[str, Any]]:
    """Write the GGUF file of a request into its folder, and see that its tokenizer is the trained one's."""
    model: Any = request.dense(config.base == "original").model
    refuse_quantized(model)
    vocabulary = vocabulary_of(bundle.tokenizer, model.config.vocab_size)
    name = re.sub(r"[^\w.-]+", "-", shown_model(request.model).removeprefix("pkg:").removesuffix(".gguf"))
    path = request.folder / f"{name}-{config.quantization.upper()}.gguf"
    types = write_gguf(model, vocabulary, path, config.quantization, name)
    _check_tokenizer(bundle.tokenizer, vocabulary, path, request)
    facts = {"file": path.name, "bytes": path.stat().st_size, "tensors": types, "tokenizer_split": vocabulary.split}
    return path, facts


def read_gguf(path: Path) -> Any:
    """What transformers makes of the file, in float32."""
    with reading_gguf(path):
        make: Any = AutoModelForCausalLM
        dense = GgufConfig(dequantize=True)
        return make.from_pretrained(path.parent, gguf_file=path.name, dtype="float32", quantization_config=dense).eval()


def _check_tokenizer(tokenizer: Any, vocabulary: Vocabulary, path: Path, request: ExportRequest) -> None:
    """Raise ExportError where the tokenizer in the file cuts the compared rows otherwise."""
    if vocabulary.split in UNREAD_SPLITS:
        return
    with reading_gguf(path):
        again: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if again.chat_template != vocabulary.template:
        raise ExportError("the chat template in the file is another one when it is read", "export the model merged")
    for row in request.rows:
        text = tokenizer.decode(row.ids, skip_special_tokens=False)
        if again(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise ExportError(f"the tokenizer in the file cuts {row.where} otherwise", "export the model merged")
