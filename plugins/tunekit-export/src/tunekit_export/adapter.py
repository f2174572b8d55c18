"""The adapter alone, in PEFT's format: copied, its base named as others know it, read again by peft."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

from tunekit.errors import ExportError
from tunekit.exporting import shown_model
from tunekit.values import Context, Exported, ExportRequest, ModelBundle
from tunekit_transformers.comparing import verify
from tunekit_transformers.quiet import quiet

from .heads import head_usage
from .reading import Reading, reading_of, write_rows

CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"


def export_adapter(bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
    """Copy the adapter that the run has saved; it is read by the code of its card."""
    source = request.adapter
    if source is None or not (source / CONFIG).is_file():
        raise ExportError("what was trained is no adapter in PEFT's format", "export the model: `merged: {}`")
    shutil.copytree(source, request.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
    _name_base(request.folder, shown_model(request.model))
    described = json.loads((request.folder / CONFIG).read_text(encoding="utf-8"))
    write_rows(bundle, request, context)
    reading = reading_of(bundle, request, context)
    how = "on the base as tunekit rounds it" if reading.says else "by the code above"
    reader = f"{_with_version('peft')} and {_with_version('transformers')}, {how}"
    found = verify(bundle, request, lambda: _read(reading, bundle, request), reader)
    facts = {"method": described.get("peft_type"), "rank": described.get("r")}
    parts = [f"## Use\n\n```python\n{reading.code()}\n```", reading.says, head_usage(request.folder)]
    return Exported(found, facts, "\n\n".join(part for part in parts if part))


def _read(reading: Reading, bundle: ModelBundle, request: ExportRequest) -> Any:
    if reading.says:  # weights that nobody else has: what the code reads it on is another base, and the card says so
        import peft

        base = request.base().model
        with quiet():
            return peft.PeftModel.from_pretrained(base, str(request.folder)).eval()
    model = reading.run(request.folder)
    return model if bundle.quantization is not None else model.to(bundle.precision.device)


def _name_base(folder: Path, name: str) -> None:
    """Call the base by the name that others know it by, in every file of a folder that says on what it stands."""
    for path in folder.rglob("*.json"):
        said = json.loads(path.read_text(encoding="utf-8"))
        if (named := _renamed(said, name)) != said:
            path.write_text(json.dumps(named, indent=2), encoding="utf-8")


def _renamed(said: Any, name: str) -> Any:
    if isinstance(said, list):
        return [_renamed(each, name) for each in said]
    if not isinstance(said, dict):
        return said
    return {key: name if key == BASE and value else _renamed(value, name) for key, value in said.items()}


def _with_version(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"
