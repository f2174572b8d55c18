"""What a model's config says about rotary positions, and what it says once they are scaled."""

from __future__ import annotations

import math
from typing import Any

from tunekit.errors import TunekitError

from . import RopeConfig

KEPT = ("rope_theta", "partial_rotary_factor", "mrope_section")
"""What belongs to positions however they are scaled."""
STORED = ("yarn", "llama3")
"""Kinds for which the config keeps the original length, so that `max_position_embeddings` can be the new one."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Those of Llama 3.1 (The Llama 3 Herd of Models, arXiv 2407.21783)."""


def factor_of(length: int, original: int) -> float:
    """The whole number of times that `original` goes into `length`, rounded up.

    So every trained position stays on the grid of the new ones, and no text that is asked for is longer than the reach.
    """
    return float(math.ceil(length / original))


def scale_(config: Any, options: RopeConfig) -> None:
    """Scale the rotary positions of a config in place. A config that says all this already stays as it is.

    Of a model whose layers differ in their positions, those of full attention are scaled: the others see no further.

    Raises:
        TunekitError: the model has no rotary positions, is scaled in another way already, or reads as much as it is.
    """
    text = config.get_text_config(decoder=True)
    whole = getattr(text, "rope_parameters", None)
    if not whole:
        what = f"use.rope: {text.model_type} has no rotary positions"
        raise TunekitError(what, "leave rope out, or name a model that has")
    rope, nested = rope_of(text), "full_attention" in whole
    original = options.original or original_length(text, rope)
    wanted = scaled(rope, original, options)
    kind = rope.get("rope_type", "default")
    if kind not in ("default", options.scaling) and options.scaling != "none":
        raise _scaled_already(kind, rope, options)
    if kind == options.scaling and kind != "default" and rope["factor"] != wanted["factor"]:
        raise _scaled_already(kind, rope, options)
    text.rope_parameters = {**whole, "full_attention": wanted} if nested else wanted
    reach = original * wanted.get("factor", 1.0)
    # transformers takes max_position_embeddings for the original length of dynamic scaling.
    text.max_position_embeddings = original if options.scaling == "dynamic" else int(reach)


def scaled(rope: dict[str, Any], original: int, options: RopeConfig) -> dict[str, Any]:
    """The rotary parameters as the options ask for them, in transformers' own words. Raises TunekitError."""
    kept = {name: rope[name] for name in KEPT if name in rope}
    if options.scaling == "none":
        return {**kept, "rope_type": "default"}
    assert options.length is not None, "a scaling is refused without a length"
    if options.length <= original:
        what = f"use.rope.length is {options.length}, and the model reads {original} as it is"
        raise TunekitError(what, "leave rope out, or ask for more")
    found = {**kept, "rope_type": options.scaling, "factor": factor_of(options.length, original)}
    if options.scaling in STORED:
        found["original_max_position_embeddings"] = original
    return {**found, **LLAMA3} if options.scaling == "llama3" else found


def original_length(text: Any, rope: dict[str, Any]) -> int:
    """How many tokens the model was trained for, before anything was scaled."""
    stored = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
    if stored:
        return int(stored)
    limit = int(text.max_position_embeddings)
    return round(limit / rope["factor"]) if rope.get("rope_type") == "linear" else limit


def rope_of(text: Any) -> dict[str, Any]:
    """The rotary parameters of the layers that see the whole text."""
    whole = getattr(text, "rope_parameters", None) or {}
    return dict(whole.get("full_attention") or whole)


def reach_of(config: Any) -> int:
    """How many tokens a model with this config reads."""
    text = config.get_text_config(decoder=True)
    rope = rope_of(text)
    return int(text.max_position_embeddings * (rope["factor"] if rope.get("rope_type") == "dynamic" else 1))


def _scaled_already(kind: str, rope: dict[str, Any], options: RopeConfig) -> TunekitError:
    what = f"use.rope asks for {options.scaling} to {options.length}, and the model is scaled by {kind} already"
    factor = f" (factor {rope['factor']:g})" if rope.get("factor") else ""
    return TunekitError(what + factor, "leave rope out, or name the model as it was before it was scaled")
