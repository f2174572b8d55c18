"""Checkpoints that bitsandbytes has quantised already: the options have to say what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunekit.errors import Problem
from tunekit_transformers.quantizing import HEADS

from . import PLAIN_INPUTS, BnbConfig

Stored = Mapping[str, Any]


def own(stored: Stored | None) -> Stored | None:
    """What a checkpoint says of its weights where bitsandbytes has stored them, else None."""
    return stored if stored is not None and stored["quant_method"] == "bitsandbytes" else None


def stored_problems(config: BnbConfig, stored: Stored | None, device: str) -> Iterable[Problem]:
    """Refuse options that ask for another kind of weights than the checkpoint has.

    The threshold may be left out on a device where it means nothing.
    """
    if stored is None:
        return
    for option, value in _options(stored).items():
        asked = getattr(config, option)
        idle = option == "threshold" and device in PLAIN_INPUTS and asked == _default(option)
        if asked != value and not idle:
            what = f"is {_written(asked)}, but the weights are stored quantised already, with {_written(value)}"
            yield Problem(f"use.bnb.{option}", what, f"write {option}: {_written(value)}")
    if config.skip:
        what = "was decided when these weights were quantised"
        yield Problem("use.bnb.skip", what, "leave it out, or name a copy with plain weights")


def threshold_problems(config: BnbConfig, stored: Stored | None, device: str) -> Iterable[Problem]:
    """Refuse a threshold where nothing is compared with it, unless it is what a checkpoint says of itself."""
    if stored is None and device in PLAIN_INPUTS and config.threshold != _default("threshold"):
        what = f"means nothing on {device}: what goes into a layer is not rounded there"
        yield Problem("use.bnb.threshold", what, "leave it out, or run on another device")


def as_stored(config: BnbConfig, stored: Stored | None) -> BnbConfig:
    """The options with the layers to skip that a checkpoint was made with."""
    if stored is None:
        return config
    skipped = (name for name in stored.get("llm_int8_skip_modules") or () if name not in HEADS)
    return config.model_copy(update={"skip": tuple(skipped)})


def _options(stored: Stored) -> dict[str, Any]:
    if stored.get("load_in_4bit"):
        kind, double = stored.get("bnb_4bit_quant_type", "fp4"), stored.get("bnb_4bit_use_double_quant", False)
        return {"bits": 4, "kind": kind, "double_quantization": double}
    return {"bits": 8, "threshold": stored.get("llm_int8_threshold", 6.0)}


def _default(option: str) -> Any:
    return BnbConfig.model_fields[option].default


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
