"""How a checkpoint says that its weights are stored, read from its config.json before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunekit.errors import ModelNotFoundError, Problem, TunekitError
from tunekit.values import LoadRequest, Plan, PlannedPlugin

from .sources import find_source

KEY = "quantization_config"


def stored_quantization(request: LoadRequest) -> Mapping[str, Any] | None:
    """The `quantization_config` of the checkpoint that is asked for, with a `quant_method`; None for plain weights.

    None as well where nothing is known yet: no such model, or one on the hub that is not in the local cache.
    """
    path = _config_file(request.model, request.revision)
    try:
        return None if path is None else stored_in(json.loads(path.read_text()))
    except ValueError:  # a broken file is the loader's to tell
        return None


def stored_in(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same of a config as plain data; models of several parts may keep it with that of their text."""
    stored = config.get(KEY) or (config.get("text_config") or {}).get(KEY)
    if not stored:
        return None
    stored = stored if isinstance(stored, Mapping) else stored.to_dict()
    method = stored.get("quant_method")
    if method is None and (stored.get("load_in_4bit") or stored.get("load_in_8bit")):
        method = "bitsandbytes"  # as it was written before methods had names
    return {**stored, "quant_method": str(getattr(method, "value", method))}


def stored_problems(stored: Mapping[str, Any] | None, plan: Plan) -> Iterable[Problem]:
    """Refuse weights that are stored quantised where no planned plugin can read them.

    A quantiser that provides `quantization.<method>` answers for checkpoints of that method.
    """
    if stored is None or reads(stored, plan.plugins):
        return
    method, others = stored["quant_method"], [p.name for p in plan.plugins if "quantization" in p.plugin.provides]
    cannot = f", which {' and '.join(others)} cannot read" if others else ""
    instead = f" instead of {others[0]}" if others else ""
    what = f"the weights of {plan.recipe.model} are stored quantised by {method}{cannot}"
    yield Problem("model", what, _remedy(method, instead))


def reads(stored: Mapping[str, Any], plugins: Iterable[PlannedPlugin]) -> bool:
    """Whether one of these plugins answers for the method."""
    return any(f"quantization.{stored['quant_method']}" in planned.plugin.provides for planned in plugins)


def _remedy(method: str, instead: str) -> str:
    """Name who could read it: asked of the installed plugins, which only this error ever imports."""
    from tunekit.catalog import Catalog

    catalog = Catalog.discover()
    for name in catalog.names:
        try:
            provides = catalog.load(name).provides
        except TunekitError:
            continue
        if isinstance(provides, frozenset) and f"quantization.{method}" in provides:
            return f"add `{name}: {{}}` to use{instead}, or name a copy with plain weights"
    return f"no installed plugin reads it; perhaps `pip install tunekit-{method}`, or name a copy with plain weights"


def _config_file(model: str, revision: str | None) -> Path | None:
    try:
        source = find_source(model)
    except ModelNotFoundError:
        return None
    if source.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source.name, "config.json", revision=revision)
        return Path(cached) if isinstance(cached, str) else None
    path = source.location / "config.json"
    return path if source.kind == "folder" and path.is_file() else None
