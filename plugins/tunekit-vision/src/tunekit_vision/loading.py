"""Load the processor of a vision-language model: its tokenizer, with what reads the images."""

from __future__ import annotations

from typing import Any, cast

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit_train.encoding.pictures import ATTRIBUTE
from tunekit_transformers.loading import Tell, explain, hub_arguments, locate, named_after_hub_, with_padding
from tunekit_transformers.options import LoadOptions
from tunekit_transformers.quiet import quiet

from .reader import ProcessorReader


def find_tokenizer(model: str, options: LoadOptions, tell: Tell) -> Any:
    """Load the processor, and return its tokenizer with the processor's chat template and its reader of images."""
    from transformers import AutoProcessor

    place, auto = locate(model, options, tell), cast(Any, AutoProcessor)
    with quiet():
        try:
            processor = auto.from_pretrained(place, **hub_arguments(options))
        except ImportError as error:
            what = " ".join(str(error).split())
            raise TunekitError(f"the processor of {place} needs a package that is not installed: {what}") from error
        except (OSError, ValueError) as error:
            raise explain(place, "processor", error) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        remedy = "take `vision` out of use, or name a model that does"
        raise PlanError([Problem("model", f"{place} reads no images", remedy)])
    if getattr(processor, "chat_template", None):
        tokenizer.chat_template = processor.chat_template
    setattr(tokenizer, ATTRIBUTE, ProcessorReader(processor))
    return named_after_hub_(with_padding(tokenizer, place, tell), model)
