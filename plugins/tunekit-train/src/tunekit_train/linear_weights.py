"""The weights of linear layers that an option names, for optimisers that treat matrices apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from tunekit.errors import PlanError, Problem, nearest

from .forward import base_model


def choose_linear_weights(
    model: Any, targets: str | tuple[str, ...], key: str, rank: int | None = None
) -> dict[str, Any]:
    """Find the weights that `targets` means, under the names of their layers.

    `targets` is all-linear (every linear layer but the head), names or parts of names, or a regular expression over
    whole names; `key` is where a recipe gives it and `rank`, as in `use.galore`. PlanError naming targets that match no
    linear layer, and a rank above the smaller side of a weight.
    """
    linear = {name: layer.weight for name, layer in model.named_modules() if is_linear(layer)}
    head = model.get_output_embeddings()
    problems: list[Problem] = []
    if targets == "all-linear":
        chosen = {name: weight for name, weight in linear.items() if head is None or weight is not head.weight}
    elif isinstance(targets, str):
        chosen = {name: weight for name, weight in linear.items() if re.fullmatch(targets, name)}
        problems += [] if chosen else [_unknown(key, targets, "no linear layer's whole name matches", linear)]
    else:
        chosen = {name: w for name, w in linear.items() if any(_holds(name, target) for target in targets)}
        unmatched = [target for target in targets if not any(_holds(name, target) for name in linear)]
        problems += [_unknown(key, target, "no linear layer's name holds", linear) for target in unmatched]
    problems += [] if rank is None else _too_narrow(key, rank, chosen)
    if problems:
        raise PlanError(problems)
    return chosen


def hidden_matrices(model: Any) -> dict[str, Any]:
    """The matrices of linear layers inside the transformer, those of an adapter included: no embedding and no head."""
    base = base_model(model)
    prefix = getattr(base, "base_model_prefix", "")
    body = getattr(base, prefix, base) if prefix else base
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    outside = {id(parameter) for end in ends if end is not None for parameter in end.parameters()}
    return {
        name: layer.weight
        for name, layer in body.named_modules()
        if is_linear(layer) and layer.weight.ndim == 2 and id(layer.weight) not in outside
    }


def is_linear(layer: Any) -> bool:
    """Whether a layer is linear with a dense weight: torch's own, [out in], or the Conv1D of GPT-2, [in out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, nn.Linear | Conv1D)


def _holds(name: str, target: str) -> bool:
    """Whether `target` is some of the dotted parts of a name, in a row."""
    return f".{target}." in f".{name}."


def _unknown(key: str, target: str, what: str, linear: Iterable[str]) -> Problem:
    parts = sorted({part for name in linear for part in name.split(".") if not part.isdigit()})
    close = nearest(target, parts)
    if target in parts:
        remedy = f"write [{target}] to name layers"
    else:
        remedy = f"did you mean {close!r}?" if close else f"the model has {', '.join(parts)}"
    return Problem(f"{key}.targets", f"{what} {target!r}", remedy)


def _too_narrow(key: str, rank: int, weights: dict[str, Any]) -> list[Problem]:
    narrow = {name: weight.shape for name, weight in weights.items() if min(weight.shape) < rank}
    if not narrow:
        return []
    name, shape = min(narrow.items(), key=lambda item: min(item[1]))
    message = f"{key}.rank is {rank}, but {name} is {shape[0]} x {shape[1]}"
    return [Problem("", message, f"choose {min(shape)} or less")]
