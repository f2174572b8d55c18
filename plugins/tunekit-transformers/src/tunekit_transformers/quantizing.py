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
OTHERWISE = "train over bnb or hqq, or export a model that is not rounded: `merged: {}`"
"""What to do where the layers of a model are not of the kind that a method stores."""
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


def shape_of(layer: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear layer; a `Conv1D` keeps its weight [in out]."""
    from transformers.pytorch_utils import Conv1D

    rows, columns = layer.weight.shape
    return (columns, rows) if isinstance(layer, Conv1D) else (rows, columns)


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
    inputs = {name: shape_of(layer)[1] for name, layer in layers.items()}
    uneven = next((name for name, count in inputs.items() if group and count % group), None)
    if uneven is not None:
        fits = math.gcd(LARGEST_GROUP, *inputs.values())
        ways = [f"choose {fits}"] if fits >= least else []
        remedy = ", or ".join([*ways, *([instead] if instead else [])]) or "export weights that are not rounded"
        what = f"is {group}, which does not divide the {inputs[uneven]} inputs of {uneven}"
        raise PlanError([Problem(key, what, remedy)])


def refuse_transposed(layers: Mapping[str, Any], key: str, remedy: str = OTHERWISE, verb: str = "round") -> None:
    """Raise PlanError for a `Conv1D`, which keeps its weight [in out] where a linear layer keeps it [out in].

    `verb` is what cannot be done with it.
    """
    from transformers.pytorch_utils import Conv1D

    name = next((name for name, layer in layers.items() if isinstance(layer, Conv1D)), None)
    if name is not None:
        what = f"cannot {verb} {name}, which is a Conv1D, as those of GPT-2 are, and no linear layer"
        raise PlanError([Problem(key, what, remedy)])


def fused_experts(model: Any) -> dict[str, Any]:
    """The weights by name that hold one matrix for each of many experts, which are no linear layers."""
    return {
        f"{place}.{name}": weight
        for place, module in model.named_modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and ("expert" in place.lower() or "Experts" in type(module).__name__)
    }


def refuse_fused_experts(model: Any, key: str, remedy: str, covers: Callable[[str], bool]) -> None:
    """Raise PlanError for fused experts that a method `covers`: stored one by one, they are not found again."""
    name = next((name for name in fused_experts(model) if covers(name)), None)
    if name is not None:
        what = f"stores experts one by one, and transformers reads those of {name} in one piece: they would be missing"
        raise PlanError([Problem(key, what, remedy)])


def note_of_experts(model: Any, stay: str = "they are not quantised, and stay dense") -> tuple[str, ...]:
    """What an estimate tells where experts are fused: how much of the model stays as it is."""
    dense = sum(parameter.numel() for parameter in fused_experts(model).values())
    total = sum(parameter.numel() for parameter in model.parameters())
    if not dense:
        return ()
    share = f"{dense:,} of {total:,} parameters ({dense / total:.0%})"
    return (f"{share} are fused experts, which are no linear layers: {stay}",)


def stored_estimate(
    estimate: Estimate, layers: Mapping[str, Any], dtype: str, stored: Callable[[int, int], int]
) -> Estimate:
    """Take these layers of the skeleton out of the weights at `dtype`, and put them back as `stored(rows, columns)`.

    Experts that are fused stay as they are, and are told of in a note.
    """
    assert estimate.skeleton is not None, "the loader's estimate comes before the quantiser's"
    dense = sum(layer.weight.numel() for layer in layers.values()) * BYTES[dtype]
    kept = sum(stored(*shape_of(layer)) for layer in layers.values())
    for layer in layers.values():
        layer.weight.requires_grad_(False)
        setattr(layer, QUANTIZED, True)
    trainable = sum(parameter.numel() for parameter in estimate.skeleton.parameters() if parameter.requires_grad)
    weights = estimate.memory.get("weights", 0) - dense + kept
    notes = (*estimate.notes, *note_of_experts(estimate.skeleton))
    return replace(estimate, trainable=trainable, memory=estimate.with_memory(weights=weights), notes=notes)


def forget_quantization(model: Any) -> Any:
    """Have a model whose layers are dense again be saved as an ordinary one; return it."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return model


def _suggest(name: str, known: list[str]) -> str:
    close = nearest(name, known)
    return f"did you mean {close!r}?" if close else f"it has {', '.join(known)}"
