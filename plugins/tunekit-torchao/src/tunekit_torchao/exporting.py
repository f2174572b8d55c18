"""Export what was trained with rounded weights: merged dense, rounded while transformers loads it, and read again."""

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

from . import TorchaoExportConfig
from .weights import loading_arguments

USAGE = """## Use

Needs `pip install torchao`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
```"""


def export_rounded(config: TorchaoExportConfig, bundle: ModelBundle, request: ExportRequest) -> Exported:
    """Write the rounded model with its tokenizer. What `qat` has trained is an ordinary model until here."""
    dtype = getattr(torch, bundle.precision.weights)
    dense: Any = request.dense(config.base == "original").model
    with TemporaryDirectory(dir=request.folder) as plain, quiet():
        dense.to(dtype).save_pretrained(plain)
        del dense
        rounded: Any = _load(Path(plain), dtype=dtype, **loading_arguments(config))
        rounded.save_pretrained(str(request.folder))
        bundle.tokenizer.save_pretrained(str(request.folder))
    found = verify(bundle, request, lambda: _load(request.folder, dtype="auto"), _reader())
    return Exported(found, {"kind": config.kind, "group": config.columns}, USAGE)


def _load(folder: Path, **arguments: Any) -> Any:
    auto: Any = transformers.AutoModelForCausalLM
    with quiet():
        return auto.from_pretrained(str(folder), **arguments)


def _reader() -> str:
    """Who reads it."""
    return " with ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torchao"))
