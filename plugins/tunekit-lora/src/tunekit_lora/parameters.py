"""What trains besides layers: parameters that no linear layer holds, and rows of the embedding."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from tunekit.errors import Problem, nearest

INSIDE = ("lora_", "modules_to_save", "token_adapter")
"""What PEFT calls the parts of an adapter."""


def choose_parameters(
    model: Any, wanted: Iterable[str], layers: Collection[str], problems: list[Problem]
) -> dict[str, tuple[int, int]]:
    """Full names of the parameters that are meant, with the sides [out, in] of each of their matrices.

    `layers` are those that get an adapter as layers, and whose weights are no parameters of this kind.
    """
    own = dict(_own_parameters(model, layers))
    chosen = {name: size for name, size in own.items() if any(_is_named(name, target) for target in wanted)}
    for target in wanted:
        if not any(_is_named(name, target) for name in own):
            problems.append(_unknown(target, own, layers))
    return chosen


def token_ids(tokenizer: Any, tokens: Iterable[str], problems: list[Problem]) -> list[int]:
    """The numbers of these tokens."""
    found = []
    for text in tokens:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            what = f"{text!r} is {len(ids)} tokens, and single rows of the embedding train"
            problems.append(Problem("use.lora.tokens", what, "name tokens that the tokenizer keeps whole"))
        found += ids
    return sorted(set(found))


def _own_parameters(model: Any, layers: Collection[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Matrices, and stacks of them, that are no layer's weight, named as if the model carried no adapter."""
    for name, parameter in model.named_parameters():
        parts = [part for part in name.split(".") if part != "base_layer"]
        if any(part.startswith(INSIDE) for part in parts) or parameter.ndim not in (2, 3):
            continue
        if ".".join(parts[:-1]) not in layers:
            yield ".".join(parts), (parameter.shape[-2], parameter.shape[-1])


def _unknown(target: str, own: Iterable[str], layers: Iterable[str]) -> Problem:
    key = "use.lora.parameters"
    if any(_is_named(name, target.removesuffix(".weight")) for name in layers):
        return Problem(key, f"{target} belongs to a layer", "name the layer in targets")
    names = list(own)
    last = sorted({name.rpartition(".")[2] for name in names})
    close = nearest(target, last) or nearest(target, names)
    known = f"it has {', '.join(last)}" if last else "every matrix of it belongs to a layer: name layers in targets"
    return Problem(key, f"the model has no parameter named {target!r}", f"did you mean {close!r}?" if close else known)


def _is_named(name: str, target: str) -> bool:
    """Whether `target` is this full name or its last parts."""
    return name == target or name.endswith(f".{target}")
