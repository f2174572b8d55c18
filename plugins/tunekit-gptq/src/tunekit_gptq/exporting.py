"""Export what was trained as packed weights: made dense, merged, quantised by data of the run, and read again."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunekit.errors import ExportError
from tunekit.values import Exported, ExportRequest, ModelBundle
from tunekit_transformers.comparing import verify
from tunekit_transformers.quiet import quiet

from .calibrating import choose_rows, rows_of_embedding
from .packed import PackedExport
from .producing import quantize

USAGE = """## Use

Needs `pip install gptqmodel optimum`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER, device_map="auto")
```"""


def export_packed(target: PackedExport[Any], bundle: ModelBundle, request: ExportRequest) -> Exported:
    """Write the quantised model with its tokenizer; transformers reads it with gptqmodel's torch kernel."""
    config = target.config
    if request.data is None:
        raise ExportError(f"there is no data to quantise by {target.method} with", "export a run that has a stage")
    data = request.data()
    dense: Any = request.dense(config.base == "original").model
    dense = dense.to(_dtype(bundle))
    rows = choose_rows(data, config.samples, config.sample_tokens, rows_of_embedding(dense)).rows
    quantize(dense, bundle.tokenizer, target.plugin().job(dense, rows, request.folder, bundle.precision.device))
    facts = {"bits": target.plugin().storage(None).bits_per_weight, "samples": len(rows)}
    return Exported(verify(bundle, request, _reading(target, request.folder, bundle), _reader()), facts, USAGE)


def _dtype(bundle: ModelBundle) -> Any:
    import torch

    return getattr(torch, bundle.precision.weights)


def _reading(target: PackedExport[Any], folder: Path, bundle: ModelBundle) -> Callable[[], Any]:
    def read() -> Any:
        import transformers

        auto: Any = transformers.AutoModelForCausalLM
        with quiet():
            return auto.from_pretrained(
                str(folder),
                dtype="auto",
                device_map={"": bundle.precision.device},
                quantization_config=target.plugin().loading(None),
            )

    return read


def _reader() -> str:
    """Who reads it."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "gptqmodel")]
    return " with ".join(versions)
