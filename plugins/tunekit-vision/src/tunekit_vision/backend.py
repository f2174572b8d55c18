"""Answering about images with transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunekit.errors import TunekitError
from tunekit.values import Example, Image, ModelBundle, Prompt
from tunekit_train.encoding import Rules
from tunekit_train.encoding.faults import Fault
from tunekit_train.encoding.fitting import Fit
from tunekit_train.encoding.pictures import ATTRIBUTE, image_reader, images_of, pictured
from tunekit_train.encoding.prompting import Prompter
from tunekit_transformers.backend import TransformersBackend, with_saved_tokenizer
from tunekit_transformers.options import LoadOptions


def open_backend(bundle: ModelBundle, options: LoadOptions, batch: int) -> VisionBackend:
    """Make a backend; a tokenizer saved with the adapter is used, with the reader of images of the model."""
    reader = image_reader(bundle.tokenizer)
    bundle = with_saved_tokenizer(bundle, options)
    setattr(bundle.tokenizer, ATTRIBUTE, reader)
    return VisionBackend(bundle, batch)


class VisionBackend(TransformersBackend):
    """A backend whose conversations may have images."""

    def encode(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt, those of its images among them, written as in training."""
        if isinstance(prompt, str):
            return super().encode(prompt)
        tokenizer = self.tokenizer
        try:
            written = Prompter(tokenizer, Rules()).write(Example(0, "the conversation", messages=tuple(prompt)))
            assert not isinstance(written, Fit), "nothing is dropped without a limit"
            images, ids = _images(prompt), written.ids
            if images:
                ids, _, _ = pictured(tokenizer, ids, np.zeros(len(ids), np.float32), images)
        except Fault as fault:
            raise TunekitError(f"a conversation cannot be answered: {fault.reason}", fault.remedy) from fault
        return [int(token) for token in ids]

    def inputs(self, prompts: Sequence[Prompt], ids: Any) -> dict[str, Any]:
        """The pixels of all images in these prompts."""
        reader: Any = image_reader(self.tokenizer)
        given = [images for prompt in prompts if (images := _images(prompt))]
        laid = reader.lay(given, ids) if given else {}
        return {name: value.to(ids.device) for name, value in laid.items()}


def _images(prompt: Prompt) -> tuple[Image, ...]:
    return () if isinstance(prompt, str) else images_of(prompt)
