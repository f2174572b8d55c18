"""Images among tokens: a marker where one stands in the text, and in its place the tokens that stand for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tunekit.values import Image, Inputs, Message

from . import faults
from .tokens import Ids, Weights

ATTRIBUTE = "tunekit_image_reader"
"""Where a tokenizer carries what reads images for its model: a loader of models that read them puts it there."""


@dataclass(frozen=True)
class Pictured:
    """Images that were looked at: the tokens that stand for each, and what the model is given of them all."""

    tokens: tuple[tuple[int, ...], ...]
    inputs: Inputs


class ImageReader(Protocol):
    """What reads images for one model. `marker` is what its chat template writes for an image, in special tokens."""

    @property
    def marker(self) -> str: ...

    def read(self, images: Sequence[Image]) -> Pictured:
        """Look at images, those of one sequence. Raises ValueError or OSError where one cannot be read."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is needed to read images beside a model's other files."""
        ...


def image_reader(tokenizer: Any) -> ImageReader | None:
    """What reads images for the model of this tokenizer; None where it reads text alone."""
    reader: ImageReader | None = getattr(tokenizer, ATTRIBUTE, None)
    return reader


def images_of(messages: Sequence[Message]) -> tuple[Image, ...]:
    """The images of messages, in their order."""
    return tuple(image for message in messages for image in message.images)


def pictured(tokenizer: Any, ids: Ids, weights: Weights, images: Sequence[Image]) -> tuple[Ids, Weights, Inputs]:
    """Tokens in which each marker has given way to those of its image, which no loss is ever on. Raises Fault."""
    reader = image_reader(tokenizer)
    assert reader is not None, "images are refused where nothing reads them"
    try:
        found = reader.read(images)
    except (OSError, ValueError) as error:
        raise faults.unreadable_image(error) from error
    marker = tokenizer(reader.marker, add_special_tokens=False)["input_ids"]
    places = find(ids, marker)
    if len(places) != len(images):
        raise faults.swallowed_image(len(images), len(places))
    parts: list[NDArray[Any]] = []
    heavy: list[NDArray[Any]] = []
    last = 0
    for place, tokens in zip(places, found.tokens, strict=True):
        parts += [ids[last:place], np.array(tokens, dtype=np.int32)]
        heavy += [weights[last:place], np.zeros(len(tokens), dtype=np.float32)]
        last = place + len(marker)
    return np.concatenate([*parts, ids[last:]]), np.concatenate([*heavy, weights[last:]]), found.inputs


def find(ids: Ids, marker: Sequence[int]) -> list[int]:
    """Where a run of tokens stands, from left to right, none inside another."""
    size, found, place = len(marker), list[int](), 0
    while place + size <= len(ids):
        if np.array_equal(ids[place : place + size], marker):
            found.append(place)
            place += size
        else:
            place += 1
    return found
