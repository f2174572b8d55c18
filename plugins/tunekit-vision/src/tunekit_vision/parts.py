"""The parts of a vision-language model: the tower that sees, the projector from it, and the language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import BYTES, Estimate, EstimateRequest, Report

from . import Part

FROZEN = "tunekit_frozen"
"""What a module carries that is to stay as it is: a low-rank adapter leaves it out."""
PROJECTORS = frozenset(
    {"multi_modal_projector", "connector", "merger", "mm_projector", "aligner", "embed_vision", "vision_projection"}
    | {"image_newline", "projector", "merger_list", "deepstack_merger_list"}
)
TOWERS = frozenset({"vision_tower", "visual", "vision_model", "vision_encoder", "vision", "image_tower"})
"""What the families call the two; a projector may lie inside the tower. All else is the language model."""


def part_of(name: str) -> Part:
    """To which part a parameter or module of this name belongs."""
    steps = set(name.split("."))
    if steps & PROJECTORS:
        return "projector"
    return "tower" if steps & TOWERS else "language"


def freeze_(model: Any, frozen: Sequence[Part]) -> Report:
    """Let no parameter of these parts train. Raises TunekitError where the model has no such part that is known."""
    chosen = list(_parameters(model, frozen))
    before = [parameter.requires_grad for parameter in chosen]
    layers = [module for name, module in model.named_modules() if part_of(name) in frozen]
    for parameter in chosen:
        parameter.requires_grad_(False)
    for layer in layers:
        setattr(layer, FROZEN, True)

    def undo() -> None:
        for parameter, did in zip(chosen, before, strict=True):
            parameter.requires_grad_(did)
        for layer in layers:
            delattr(layer, FROZEN)

    counts = {part: sum(each.numel() for each in _parameters(model, [part])) for part in _parts(model)}
    told = " and ".join(frozen) if frozen else "nothing"
    return Report(f"frozen: {told}", {"parameters": counts}, undo)


def estimate_parts(frozen: Sequence[Part], request: EstimateRequest, estimate: Estimate) -> Estimate:
    """Freeze the skeleton's parts, and count what trains of it where no adapter says otherwise."""
    model, precision = estimate.skeleton, request.load.precision
    freeze_(model, frozen)
    training = sum(each.numel() for each in model.parameters() if each.requires_grad)
    memory = estimate.memory
    if not any(hasattr(planned.plugin, "tunekit_attach_adapter") for planned in request.plan.plugins):
        still = estimate.parameters - training
        weights = training * BYTES[precision.trainable] + still * BYTES[precision.weights]
        memory = estimate.with_memory(weights=weights)
    notes = (*estimate.notes, "images: what their tower computes is not in the estimate of memory")
    return replace(estimate, trainable=training, memory=memory, notes=notes)


def _parts(model: Any) -> tuple[Part, ...]:
    found = {part_of(name) for name, _ in model.named_parameters()}
    return tuple(part for part in ("tower", "projector", "language") if part in found)  # type: ignore[misc]


def _parameters(model: Any, parts: Sequence[Part]) -> Iterator[Any]:
    missing = [part for part in parts if part not in _parts(model)]
    if missing:
        raise TunekitError(
            f"use.vision.freeze names the {missing[0]}, and {type(model).__name__} calls none of its modules so",
            "leave it out",
        )
    return (parameter for name, parameter in model.named_parameters() if part_of(name) in parts)
