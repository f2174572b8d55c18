"""Recipes: the same object from YAML, JSON, Python and command-line overrides."""

from .building import exports_from_code, from_code, from_file, from_mapping
from .model import MixingOptions, Origin, Recipe, SourceOptions, Stage, Use, leaves
from .schema import json_schema
from .validation import validate

__all__ = [
    "MixingOptions",
    "Origin",
    "Recipe",
    "SourceOptions",
    "Stage",
    "Use",
    "exports_from_code",
    "from_code",
    "from_file",
    "from_mapping",
    "json_schema",
    "leaves",
    "validate",
]
