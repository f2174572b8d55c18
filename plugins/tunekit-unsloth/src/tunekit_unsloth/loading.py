"""Load a model through unsloth in its own process, and with transformers in any other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tunekit.values import Context, Event, LoadRequest, ModelBundle
from tunekit_transformers import Transformers
from tunekit_transformers.loading import locate
from tunekit_transformers.options import LoadOptions

from . import UnslothConfig


def load(config: UnslothConfig, request: LoadRequest, context: Context) -> ModelBundle:
    """Load the model of the request, on its device, in its `weights` dtype.

    A process that has not imported unsloth is not the run's own child: it only asks, and is not to be patched.
    """
    if "unsloth" not in sys.modules:
        plain = Transformers(revision=config.revision, trust_remote_code=config.trust_remote_code)
        return plain.tunekit_load_model(request=request, context=context)
    return ModelBundle(_fast(config, request, context), request.tokenizer, request.model, request.precision)


def _fast(config: UnslothConfig, request: LoadRequest, context: Context) -> Any:
    import torch
    from unsloth import FastLanguageModel  # type: ignore[import-not-found, import-untyped, unused-ignore]

    def tell(message: str) -> None:
        context.emit(Event(kind="started", stage="load", message=message))

    options = LoadOptions(revision=config.revision, trust_remote_code=config.trust_remote_code)
    place = locate(request.model, options, tell)
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(Path(place)) if Path(place).exists() else place,
        max_seq_length=config.max_length,
        dtype=getattr(torch, request.precision.weights),
        load_in_4bit=False,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        use_gradient_checkpointing=False,  # the engine decides that
        **request.arguments,
    )
    return model.eval()
