"""The JSON Schema of a recipe with everything installed, so that editors complete and check recipes."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from ..catalog import EXPORTS, Catalog, hooks_of
from ..plugin import Plugin
from .model import AdapterOptions, MixingOptions, SourceOptions

STAGE_HOOK = "tunekit_train_stage"
LOCAL = r"\.py:\w+$"
"""A plugin in a file of the user's own; what its options are is not known here."""


def json_schema(catalog: Catalog | None = None) -> dict[str, Any]:
    """Write the schema of recipes over all available plugins; broken and disabled ones are left out."""
    plugins, targets = _available(catalog or Catalog.discover()), _available(Catalog.discover(group=EXPORTS))
    stages = {name: plugin for name, plugin in plugins.items() if STAGE_HOOK in hooks_of(plugin)}
    techniques = {name: plugin for name, plugin in plugins.items() if name not in stages}
    models: list[Any] = [(each.config_type(), "validation") for each in (*plugins.values(), *targets.values())]
    references, definitions = models_json_schema(
        [*dict.fromkeys(models), *((model, "validation") for model in (SourceOptions, MixingOptions, AdapterOptions))]
    )
    reference = {model: value for (model, _), value in references.items()}
    use = {
        **_options({name: _option(plugin, reference) for name, plugin in sorted(techniques.items())}),
        "patternProperties": {LOCAL: {"type": ["object", "null"]}},
    }
    mixing = definitions["$defs"][reference[MixingOptions]["$ref"].rpartition("/")[2]]
    data = _data(reference[SourceOptions], mixing["properties"])
    own = {"data": data, "use": use, "adapter": {"anyOf": [{"type": "string"}, reference[AdapterOptions]]}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tunekit recipe",
        **_options(
            {
                "model": {"type": "string", "description": "hub id, folder, GGUF file, or pkg:<python package>"},
                "data": data,
                "use": {**use, "description": "plugins and their options"},
                "stages": _stages(stages, reference, definitions["$defs"], own),
                "export": _exports(targets, reference),
                "output": {"type": "string", "description": "folder of the run"},
                "seed": {"type": "integer", "minimum": 0, "default": 0, "description": "seed of everything random"},
            }
        ),
        "required": ["model", "stages"],
        "$defs": definitions["$defs"],
    }


def _available(catalog: Catalog) -> dict[str, type[Plugin[Any]]]:
    return {row.name: catalog.load(row.name) for row in catalog.listing() if row.status == "available"}


def _exports(targets: dict[str, type[Plugin[Any]]], reference: dict[Any, Any]) -> dict[str, Any]:
    """A list of targets, each by its name alone or with its options; or one alone."""
    shapes: list[dict[str, Any]] = [{"enum": sorted(targets)}] if targets else []
    for name, plugin in sorted(targets.items()):
        shapes.append({**_options({name: _option(plugin, reference)}), "required": [name]})
    shapes += [{**_options({}), "patternProperties": {LOCAL: {"type": ["object", "null"]}}}]
    shapes += [{"type": "string", "pattern": LOCAL}]
    several = {"type": "array", "items": {"anyOf": shapes}}
    return {"anyOf": [*shapes, several], "description": "what is exported at the end, in order"}


def _options(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _option(plugin: type[Plugin[Any]], reference: dict[Any, Any]) -> dict[str, Any]:
    summary = (plugin.__doc__ or "").strip().partition("\n")[0]
    return {"anyOf": [reference[plugin.config_type()], {"type": "null"}], "description": summary}


def _data(source: Any, mixing: dict[str, Any]) -> dict[str, Any]:
    one = {"anyOf": [{"type": "string"}, source]}
    several = {"anyOf": [*one["anyOf"], {"type": "array", "items": one}]}
    mixed = {**_options({"sources": several, **mixing}), "required": ["sources"]}
    return {"anyOf": [*several["anyOf"], mixed], "description": "data sources, and how they are mixed"}


def _stages(
    stages: dict[str, type[Plugin[Any]]],
    reference: dict[Any, Any],
    definitions: dict[str, Any],
    own: dict[str, Any],
) -> dict[str, Any]:
    """A stage takes the options of its plugin and, beside them, its own data, plugins and adapter."""
    shapes: list[dict[str, Any]] = [{"enum": sorted(stages)}] if stages else []
    for name, plugin in sorted(stages.items()):
        definition = definitions[reference[plugin.config_type()]["$ref"].rpartition("/")[2]]
        shape = _options({**definition["properties"], **own})
        shapes.append({**_options({name: {"anyOf": [shape, {"type": "null"}]}}), "required": [name]})
    local = {**_options({}), "patternProperties": {LOCAL: {"type": ["object", "null"]}}}
    shapes += [local, {"type": "string", "pattern": LOCAL}]
    return {"type": "array", "items": {"anyOf": shapes}, "minItems": 1, "description": "what to train, in order"}
