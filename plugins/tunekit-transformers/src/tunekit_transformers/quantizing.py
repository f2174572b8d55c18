"""What quantisers share: the linear layers they take, what those weigh once stored, and forgetting that they did."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from tunekit.errors import PlanError, Problem, nearest
from tunekit.values import BYTES, Estimate

HEADS = ("lm_head", "embed_out")
"""Names of output heads: transformers keeps the head by itself only where no other layer is named."""
QUANTIZED = "tunekit_quantized"
"""What an estimate gives to the layers of a skeleton that will be quantised: adapters must not train them whole."""


LARGEST_GROUP = 128
"""A power of two: groups that fit are offered up to it."""


def kept_names(skip: Iterable[str], dense: Iterable[str] = ()) -> list[str] | None:
    """What transformers is to be told not to convert, so that the head always keeps its weights."""
    names = [*skip, *dense]
    return [*names, *HEADS] if names else None


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers of a model by name, those that transformers writes as `Conv1D` among them."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)}


def layers_to_quantize(model: Any, skip: Iterable[str], key: str, dense: Iterable[str] = ()) -> dict[str, Any]:
    """The linear layers but the head, those to `skip`, and those in modules that are `dense` whatever is asked.

    PlanError under `key` where a name to skip keeps none.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module

    linear, names = linear_layers(model), list(skip)
    refuse_idle_names(names, linear, key)
    head, kept = model.get_output_embeddings(), kept_names(names, dense)
    return {n: layer for n, layer in linear.items() if layer is not head and should_convert_module(n, kept)}


def refuse_idle_names(skip: Iterable[str], linear: Iterable[str], key: str) -> None:
    """Raise PlanError for names of layers to keep that none of the linear layers has."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    names = list(linear)
    idle = [part for part in skip if all(should_convert_module(name, [part]) for name in names)]
    last = sorted({name.rpartition(".")[2] for name in names})
    if idle:
        what = "the model has no linear layer named"
        raise PlanError(Problem(key, f"{what} {part!r}", _suggest(part, last)) for part in idle)


def refuse_uneven(layers: Mapping[str, Any], group: int | None, key: str, instead: str = "", least: int = 8) -> None:
    """Raise PlanError for a layer whose inputs are no multiple of `group`, with a group that divides those of all.

    `instead` says what else can be done, and `least` is the smallest group there is.
    """
    inputs = {name: _inputs(layer) for name, layer in layers.items()}
    uneven = next((name for name, count in inputs.items() if group and count % group), None)
    if uneven is not None:
        fits = math.gcd(LARGEST_GROUP, *inputs.values())
        ways = [f"choose {fits}"] if fits >= least else []
        remedy = ", or ".join([*ways, *([instead] if instead else [])]) or "export weights that are not rounded"
        what = f"is {group}, which does not divide the {inputs[uneven]} inputs of {uneven}"
        raise PlanError([Problem(key, what, remedy)])


def stored_estimate(
    estimate: Estimate, layers: Mapping[str, Any], dtype: str, stored: Callable[[int, int], int]
) -> Estimate:
    """Take these layers of the skeleton out of the weights at `dtype`, and put them back as `stored(rows, columns)`."""
    assert estimate.skeleton is not None, "the loader's estimate comes before the quantiser's"
    dense = sum(layer.weight.numel() for layer in layers.values()) * BYTES[dtype]
    kept = sum(stored(*layer.weight.shape) for layer in layers.values())
    for layer in layers.values():
        layer.weight.requires_grad_(False)
        setattr(layer, QUANTIZED, True)
    trainable = sum(parameter.numel() for parameter in estimate.skeleton.parameters() if parameter.requires_grad)
    weights = estimate.memory.get("weights", 0) - dense + kept
    return replace(estimate, trainable=trainable, memory=estimate.with_memory(weights=weights))


def forget_quantization(model: Any) -> Any:
    """Have a model whose layers are dense again be saved as an ordinary one; return it."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return model


def _inputs(layer: Any) -> int:
    """How many inputs a linear layer has; a `Conv1D` keeps its weight [in out]."""
    return int(getattr(layer, "in_features", None) or layer.weight.shape[0])


def _suggest(name: str, known: list[str]) -> str:
    close = nearest(name, known)
    return f"did you mean {close!r}?" if close else f"it has {', '.join(known)}"
