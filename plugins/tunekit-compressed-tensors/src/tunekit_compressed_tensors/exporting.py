"""Export what was trained with packed weights: merged dense, rounded to the nearest, and read again."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from tunekit.values import Exported, ExportRequest, ModelBundle
from tunekit_transformers.comparing import verify
from tunekit_transformers.quiet import quiet

from . import CompressedTensorsExportConfig
from .producing import compress_

USAGE = """## Use

With vLLM, `vllm serve FOLDER`. In transformers, with `pip install compressed-tensors`:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
```"""


def export_packed(config: CompressedTensorsExportConfig, bundle: ModelBundle, request: ExportRequest) -> Exported:
    """Write the packed model with its tokenizer; transformers reads it."""
    dtype = getattr(torch, bundle.precision.weights)
    dense: Any = request.dense(config.base == "original").model
    with TemporaryDirectory(dir=request.folder) as plain, quiet():
        dense.to(dtype).save_pretrained(plain)
        del dense
        compress_(_load(Path(plain), dtype=dtype), request.folder, config.bits, config.group)
        bundle.tokenizer.save_pretrained(str(request.folder))
    found = verify(bundle, request, lambda: _load(request.folder, dtype="auto"), _reader())
    return Exported(found, {"bits": config.bits, "group": config.group}, USAGE)


def _load(folder: Path, **arguments: Any) -> Any:
    auto: Any = transformers.AutoModelForCausalLM
    with quiet():
        return auto.from_pretrained(str(folder), **arguments)


def _reader() -> str:
    """Who reads it."""
    return " with ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "compressed-tensors")
    )
