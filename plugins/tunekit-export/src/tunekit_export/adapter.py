"""The adapter alone, in PEFT's format: copied, its base named as others know it, read again by peft."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from typing import Any

import peft

from tunekit.errors import ExportError
from tunekit.exporting import shown_model
from tunekit.values import Exported, ExportRequest, ModelBundle
from tunekit_transformers.comparing import verify
from tunekit_transformers.quiet import quiet

CONFIG = "adapter_config.json"
USAGE = """## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{model}")
model = PeftModel.from_pretrained(base, FOLDER)
```"""
STACKED = """

It was trained on top of another adapter, which lies in `below/`: merge that one into the base first.
"""


def export_adapter(bundle: ModelBundle, request: ExportRequest) -> Exported:
    """Copy the adapter that the run has saved; peft puts it on the base as it was before training."""
    source = request.adapter
    if source is None or not (source / CONFIG).is_file():
        raise ExportError("what was trained is no adapter in PEFT's format", "export the model: `merged: {}`")
    shutil.copytree(source, request.folder, dirs_exist_ok=True)
    model = shown_model(request.model)
    config = request.folder / CONFIG
    described = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**described, "base_model_name_or_path": model}, indent=2), encoding="utf-8")
    reader = f"peft {importlib.metadata.version('peft')}, on the base as it was loaded for training"
    found = verify(bundle, request, lambda: _read(request), reader)
    facts = {"method": described.get("peft_type"), "rank": described.get("r")}
    usage = USAGE.format(model=model) + (STACKED if (request.folder / "below").is_dir() else "")
    return Exported(found, facts, usage)


def _read(request: ExportRequest) -> Any:
    with quiet():
        return peft.PeftModel.from_pretrained(request.base().model, str(request.folder)).eval()
