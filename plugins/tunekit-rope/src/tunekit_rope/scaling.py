"""What a model's config says about rotary positions, and what it says once they are scaled."""

from __future__ import annotations

import math
from typing import Any

from tunekit.errors import TunekitError

from . import RopeConfig

SCALING = frozenset(
    {"rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"}
    | {"mscale", "mscale_all_dim", "truncate", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor"}
)
"""What says how positions are scaled; all else (base, share of a head, sections) belongs to them however they are."""
SCALED = ("linear", "dynamic", "yarn", "llama3", "longrope")
"""Kinds that are plain positions scaled, so that plain ones can take their place."""
FULL, ORIGINAL = "full_attention", "original_max_position_embeddings"
"""What transformers calls the layers that see the whole text, and the length before anything was scaled."""
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
    """Scale the rotary positions of a config in place. One that is scaled so already keeps all it says of it.

    Of a model whose layers differ in their positions, those of full attention are scaled: the others see no further.

    Raises:
        TunekitError: the model has no rotary positions, is scaled in another way already, or reads as much as it is.
    """
    text = config.get_text_config(decoder=True)
    whole, rope = getattr(text, "rope_parameters", None) or {}, rope_of(text)
    if not rope:
        what = f"use.rope: {text.model_type} has no rotary positions" + (
            " in layers of full attention" if whole else ""
        )
        raise TunekitError(what, "leave rope out, or name a model that has")
    kind, original = rope.get("rope_type", "default"), options.original or original_length(text, rope)
    wanted = scaled(rope, original, options)
    if kind != "default" and (options.scaling != "none" or kind not in SCALED):
        now = (kind, factor_in(text, rope), original_length(text, rope))
        if now != (options.scaling, wanted.get("factor"), original):
            raise _scaled_already(kind, rope, options)
        wanted = rope  # with what else it says: the borders of yarn, its attention factor
    text.rope_parameters = {**whole, FULL: wanted} if FULL in whole else wanted
    # transformers takes max_position_embeddings for the original length of dynamic scaling.
    reach = 1.0 if options.scaling == "dynamic" else factor_in(text, wanted)
    text.max_position_embeddings = int(original * reach)


def scaled(rope: dict[str, Any], original: int, options: RopeConfig) -> dict[str, Any]:
    """The rotary parameters as the options ask for them, in transformers' own words. Raises TunekitError."""
    kept = {name: value for name, value in rope.items() if name not in SCALING}
    if options.scaling == "none":
        return {**kept, "rope_type": "default"}
    assert options.length is not None, "a scaling is refused without a length"
    if options.length <= original:
        what = f"use.rope.length is {options.length}, and the model reads {original} as it is"
        raise TunekitError(what, "leave rope out, or ask for more")
    found = {**kept, "rope_type": options.scaling, "factor": factor_of(options.length, original)}
    if options.scaling in STORED:
        found[ORIGINAL] = original
    return {**found, **LLAMA3} if options.scaling == "llama3" else found


def original_length(text: Any, rope: dict[str, Any]) -> int:
    """How many tokens the model was trained for, before anything was scaled."""
    stored = rope.get(ORIGINAL) or getattr(text, ORIGINAL, None)
    if stored:
        return int(stored)
    limit = int(text.max_position_embeddings)
    return round(limit / rope["factor"]) if rope.get("rope_type") == "linear" else limit


def factor_in(text: Any, rope: dict[str, Any]) -> float:
    """The factor of rotary parameters; where they leave it to the lengths, as DeepSeek's may, the one of these."""
    if rope.get("factor") is not None:
        return float(rope["factor"])
    stored = rope.get(ORIGINAL)
    return float(text.max_position_embeddings / stored) if stored else 1.0


def rope_of(text: Any) -> dict[str, Any]:
    """The rotary parameters of the layers that see the whole text; empty where these have none."""
    whole = getattr(text, "rope_parameters", None) or {}
    differ = text.nested_rope_parameter_keys(whole) if whole else []
    return dict((whole.get(FULL) or {}) if differ else whole)


def reach_of(config: Any) -> int:
    """How many tokens a model with this config reads."""
    text = config.get_text_config(decoder=True)
    rope = rope_of(text)
    return int(text.max_position_embeddings * (factor_in(text, rope) if rope.get("rope_type") == "dynamic" else 1))


def _scaled_already(kind: str, rope: dict[str, Any], options: RopeConfig) -> TunekitError:
    asked = "no scaling" if options.scaling == "none" else f"{options.scaling} to {options.length}"
    what = f"use.rope asks for {asked}, and the model is scaled by {kind} already"
    factor = f" (factor {rope['factor']:g})" if rope.get("factor") else ""
    return TunekitError(what + factor, "leave rope out, or name the model as it was before it was scaled")
