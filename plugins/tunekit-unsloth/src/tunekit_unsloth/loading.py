"""Load a model through unsloth, in the one process that has imported it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import Context, Event, LoadRequest, ModelBundle
from tunekit_transformers.loading import load_config, locate, look_through, named_after_hub_
from tunekit_transformers.options import LoadOptions

from .checks import refuse_scaling


def is_child() -> bool:
    """Whether this process has imported unsloth, as the run's own child does first of all."""
    return "unsloth" in sys.modules


def load(max_length: int, options: LoadOptions, request: LoadRequest, context: Context) -> ModelBundle:
    """Load the model of the request, on its device, in its `weights` dtype.

    Raises TunekitError for what unsloth would pass over: weights that are missing, changes of the config, and a length
    for which it would scale the model's positions.
    """

    def tell(message: str) -> None:
        context.emit(Event(kind="started", stage="load", message=message))

    if request.configure:
        what = "use.unsloth: another plugin changes the model's config, and unsloth reads that of the checkpoint"
        raise TunekitError(what, "leave one of the two out")
    place = locate(request.model, options, tell)
    refuse_scaling(max_length, load_config(place, options))
    look_through(place, options)
    model = named_after_hub_(_fast(place, max_length, options, request), request.model)
    return ModelBundle(model.eval(), request.tokenizer, request.model, request.precision)


def _fast(place: str, max_length: int, options: LoadOptions, request: LoadRequest) -> Any:
    import torch
    from unsloth import FastLanguageModel  # type: ignore[import-not-found, import-untyped, unused-ignore]

    model, _ = FastLanguageModel.from_pretrained(
        model_name=place,
        max_seq_length=max_length,
        dtype=getattr(torch, request.precision.weights),
        load_in_4bit=False,
        use_exact_model_name=True,  # it knows copies of its own of many models
        revision=None if Path(place).exists() else options.revision,
        trust_remote_code=options.trust_remote_code,
        use_gradient_checkpointing=False,  # the engine decides that
        **request.arguments,
    )
    return model
