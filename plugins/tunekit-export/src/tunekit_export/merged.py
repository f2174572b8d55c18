"""One dense model in transformers' format: merged in float32, rounded once, written, read again."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tunekit.errors import ExportError
from tunekit.values import Exported, ExportRequest, ModelBundle
from tunekit_train.encoding.pictures import image_reader
from tunekit_transformers.comparing import verify
from tunekit_transformers.quiet import quiet

if TYPE_CHECKING:
    from . import MergedConfig

USAGE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
```"""


def export_merged(config: MergedConfig, bundle: ModelBundle, request: ExportRequest) -> Exported:
    """Write the merged model with its tokenizer, chat template and generation settings; transformers reads it."""
    dtype = bundle.precision.weights if config.dtype == "auto" else config.dtype
    parameters = write_dense(bundle, request, config.base, dtype, config.shard)
    found = verify(bundle, request, lambda: read_dense(request.folder), reader())
    return Exported(found, {"dtype": dtype, "parameters": parameters}, USAGE)


def write_dense(bundle: ModelBundle, request: ExportRequest, base: str, dtype: str, shard: str) -> int:
    """Write the dense model of a request into its folder; how many parameters it has."""
    model: Any = request.dense(base == "original").model
    refuse_quantized(model)
    model = model.to(getattr(torch, dtype))
    with quiet():
        model.save_pretrained(str(request.folder), max_shard_size=shard)
        bundle.tokenizer.save_pretrained(str(request.folder))
        if (reader := image_reader(bundle.tokenizer)) is not None:
            reader.save(request.folder)
        _check_tokenizer(bundle.tokenizer, request.folder)
    return sum(parameter.numel() for parameter in model.parameters())


def read_dense(folder: Path, **arguments: Any) -> Any:
    """What transformers makes of a folder, as the class that its config names."""
    with quiet():
        config: Any = AutoConfig.from_pretrained(str(folder))
        kind = getattr(transformers, config.architectures[0], AutoModelForCausalLM)
        return kind.from_pretrained(str(folder), dtype="auto", **arguments)


def reader() -> str:
    """Who reads it."""
    return f"transformers {importlib.metadata.version('transformers')}"


def refuse_quantized(model: Any) -> None:
    """Raise ExportError where a model that is said to be dense still says that it is quantised."""
    left = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if left or getattr(model.config, "quantization_config", None) is not None:
        what = f"{left[0]} holds whole numbers" if left else "its config names a quantisation"
        raise ExportError(
            f"the base is still quantised: {what}", "merge into the original weights with `base: original`"
        )


def _check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Raise ExportError where what is read again has another chat template or other tokens."""
    again: Any = AutoTokenizer.from_pretrained(str(folder))
    if again.chat_template != tokenizer.chat_template or again.get_vocab() != tokenizer.get_vocab():
        raise ExportError("the tokenizer that was written is another one when it is read", "give it another format")
