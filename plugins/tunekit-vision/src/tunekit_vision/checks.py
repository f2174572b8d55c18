"""What cannot be done with images, said before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.errors import ModelNotFoundError, Problem
from tunekit.values import Plan
from tunekit_transformers.sources import find_source

from . import VisionConfig


def problems(config: VisionConfig, plan: Plan) -> Iterator[Problem]:
    """Stages that train on text alone, and options for text whose places can be moved."""
    model = str(plan.recipe.model)
    if _is_gguf(model):
        what = f"{model} is a GGUF file, which holds a language model without what sees"
        yield Problem("model", what, "name the folder or hub id of the whole model")
    if len(set(config.freeze)) == 3:
        yield Problem("use.vision.freeze", "freezes all parts, so nothing would train", "leave one of them out")
    if plan.provides("adapter") and not plan.provides("adapter.lora"):
        what = "vision freezes parts of the model for lora alone, and another adapter is planned"
        yield Problem("use.vision", what, "use lora, or none, so that the weights themselves train")
    if plan.provides("processes"):
        what = "images are read by one process, and the run is carried out by several"
        yield Problem("use.vision", what, "train it in one process")
    for planned in plan.plugins:
        given = planned.plugin.provides
        if given & {"quantization", "weights.rounded", "products.float8"} and "quantization.selective" not in given:
            what = f"{planned.name} cannot leave what sees and the projector as they are"
            yield Problem(planned.key, what, "take bnb, hqq or torchao, which round the language model alone")
    for stage in plan.stages:
        if "stage.sft" not in stage.plugin.plugin.provides:
            what = f"{stage.name} trains on text alone, and vision loads a model for images"
            yield Problem(stage.key, what, "train it with sft, or take vision out and name a language model")
        yield from _stage_problems(stage.key, stage.plugin.plugin.config, stage.mixing.streaming)


def _stage_problems(key: str, options: Any, streaming: bool) -> Iterator[Problem]:
    batch = getattr(options, "batch", None)
    if streaming:
        what = "streams rows, and the images of a row are read again whenever it comes"
        yield Problem(f"{key}.data.streaming", what, "leave it out")
    if batch is not None and batch.packing != "none":
        what = f"is {batch.packing}, and a text with images lies in a row of its own"
        yield Problem(f"{key}.batch.packing", what, "leave it out")
    if batch is not None and batch.padding == "never":
        what = "is never, and a text with images lies in a row of its own, padded to the longest"
        yield Problem(f"{key}.batch.padding", what, "leave it out")


def _is_gguf(model: str) -> bool:
    try:
        return find_source(model).kind == "gguf"
    except ModelNotFoundError:
        return False  # said already
