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
    return stored_in(_config(request))


def classifier_problems(request: LoadRequest) -> Iterable[Problem]:
    """Refuse a model that gives a text a class or a reward: it has no head that continues one."""
    made = next(iter(_config(request).get("architectures") or ()), None)
    if str(made).endswith("Classification"):
        what = f"{request.model} is a {made}, whose head values texts and would be left out"
        remedy = "name the model that it was made of; `ppo` takes one that rewards as its `reward.model`"
        yield Problem("model", what, remedy)


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


def _config(request: LoadRequest) -> Mapping[str, Any]:
    """What config.json says where it is on this disk; nothing of a broken file, which is the loader's to tell."""
    path = _config_file(request.model, request.revision)
    try:
        said: Any = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return said if isinstance(said, Mapping) else {}


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
