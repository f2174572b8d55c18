"""The parts of a vision-language model: the tower that sees, the projector from it, and the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit.values import BYTES, Estimate, EstimateRequest, Report
from tunekit_transformers.quantizing import layers_to_quantize

from . import Part

FROZEN = "tunekit_frozen"
"""What a module carries that is to stay as it is: a low-rank adapter leaves it out."""
PROJECTORS = frozenset(
    {"multi_modal_projector", "connector", "merger", "mm_projector", "aligner", "embed_vision", "vision_projection"}
    | {"image_newline", "projector", "merger_list", "deepstack_merger_list", "qformer", "language_projection"}
    | {"image_to_text_projection", "resampler_model", "vision_adapter", "visual_embeddings_table"}
)
TOWERS = frozenset(
    {"vision_tower", "visual", "vision_model", "vision_encoder", "vision", "image_tower", "video_tower", "audio_tower"}
    | {"vqmodel"}
)
"""What the families call the two; a projector may lie inside the tower."""


def patterns() -> tuple[str, ...]:
    """Regular expressions of the start of the names of all modules that are not of the language model."""
    return (rf"(?:.*\.)?(?:{'|'.join(sorted(TOWERS | PROJECTORS))})",)


def part_of(name: str) -> Part:
    """To which part a parameter or module belongs by its name alone: what is not known is the language model's."""
    steps = set(name.split("."))
    if steps & PROJECTORS:
        return "projector"
    return "tower" if steps & TOWERS else "language"


def parts_of(model: Any) -> dict[str, Part]:
    """To which part each parameter of a model belongs.

    One of an unknown name is the projector's where it is neither in the model's own decoder nor in its embeddings or
    head: it stands between what sees and what writes.
    """
    ends = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    writes = {id(each) for end in ends if end is not None for each in end.parameters()}
    named = {name: (part_of(name), id(each)) for name, each in model.named_parameters()}
    return {n: "projector" if part == "language" and at not in writes else part for n, (part, at) in named.items()}


def refuse_rounding(skeleton: Any, quantizer: str, skip: Sequence[str]) -> None:
    """Raise PlanError where a quantiser would round a layer that is not the language model's, for want of its name.

    `skip` are the layers that it is told to leave.
    """
    parts = parts_of(skeleton)
    layers = layers_to_quantize(skeleton, skip, f"use.{quantizer}.skip", patterns())
    name = next((name for name in layers if parts[f"{name}.weight"] != "language"), None)
    if name is not None:
        kind = type(skeleton).__name__
        what = f"{name} of {kind} is not of its language model, and would be rounded with it"
        raise PlanError([Problem(f"use.{quantizer}", what, f"name it in use.{quantizer}.skip")])


def freeze_(model: Any, frozen: Sequence[Part]) -> Report:
    """Let no parameter of these parts train. Raises TunekitError where the model has no such part that is known."""
    parts = parts_of(model)
    _refuse_missing(model, parts, frozen)
    chosen = [parameter for name, parameter in model.named_parameters() if parts[name] in frozen]
    before = [parameter.requires_grad for parameter in chosen]
    layers = [module for name, module in model.named_modules() if _lies_in(name, module, parts, frozen)]
    for parameter in chosen:
        parameter.requires_grad_(False)
    for layer in layers:
        setattr(layer, FROZEN, True)

    def undo() -> None:
        for parameter, did in zip(chosen, before, strict=True):
            parameter.requires_grad_(did)
        for layer in layers:
            delattr(layer, FROZEN)

    counts: dict[Part, int] = {}
    for name, parameter in model.named_parameters():
        counts[parts[name]] = counts.get(parts[name], 0) + parameter.numel()
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


def _lies_in(name: str, module: Any, parts: Mapping[str, Part], chosen: Sequence[Part]) -> bool:
    """Whether all parameters of a module belong to the chosen parts; one without any is told by its name."""
    found = {parts.get(f"{name}.{own}" if name else own, part_of(name)) for own, _ in module.named_parameters()}
    return (found or {part_of(name)}) <= set(chosen)


def _refuse_missing(model: Any, parts: Mapping[str, Part], frozen: Sequence[Part]) -> None:
    found = set(parts.values())
    missing = [part for part in frozen if part not in found]
    if missing:
        raise TunekitError(
            f"use.vision.freeze names the {missing[0]}, and {type(model).__name__} calls none of its modules so",
            "leave it out",
        )
