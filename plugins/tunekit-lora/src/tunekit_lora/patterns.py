"""Ranks and alphas of single layers, by patterns over their names. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from tunekit.errors import Problem, nearest

if TYPE_CHECKING:
    from . import LoraConfig

Value = TypeVar("Value")


def readable(pattern: str) -> str:
    """The pattern itself. Raises ValueError where it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
    return pattern


def fits(pattern: str, name: str) -> bool:
    """Whether PEFT takes a pattern for this layer: it matches the last parts of the name."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def first_fit(patterns: Mapping[str, Value], name: str, otherwise: Value) -> Value:
    """The value of the first pattern that fits a name, as PEFT looks it up."""
    return next((value for pattern, value in patterns.items() if fits(pattern, name)), otherwise)


def rank_of(config: LoraConfig, name: str) -> int:
    """The rank of the layer of this name."""
    return first_fit(config.rank_pattern, name, config.rank)


def alphas(config: LoraConfig) -> dict[str, float]:
    """The alphas by pattern: those asked for, then those that keep the scale of layers of another rank the same."""
    if config.alpha is not None or config.rslora:
        return dict(config.alpha_pattern)
    derived = {pattern: config.alpha_for(rank) for pattern, rank in config.rank_pattern.items()}
    return {**config.alpha_pattern, **{key: alpha for key, alpha in derived.items() if key not in config.alpha_pattern}}


def pattern_problems(config: LoraConfig, chosen: Iterable[str]) -> list[Problem]:
    """Patterns that fit none of the layers that get an adapter."""
    names = list(chosen)
    last = sorted({name.rpartition(".")[2] for name in names})
    found = []
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, option):
            if not any(fits(pattern, name) for name in names):
                close = nearest(pattern, last) or nearest(pattern, names)
                remedy = f"did you mean {close!r}?" if close else f"adapted are {', '.join(last)}"
                found.append(Problem(f"use.lora.{option}", f"no adapted layer's name ends in {pattern!r}", remedy))
    return found
