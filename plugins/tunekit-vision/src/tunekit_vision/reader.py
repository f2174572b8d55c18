"""Reading images with the processor that belongs to a model."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunekit.errors import TunekitError
from tunekit.values import Image, Inputs
from tunekit_train.encoding.pictures import Pictured

TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
"""What a processor makes of the text; ours are laid out by the engine."""


class ProcessorReader:
    """Implements `tunekit_train.encoding.pictures.ImageReader` for any processor of transformers.

    Images are opened and resized anew for each batch: pixels of a whole data set would fill the memory.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.marker = image_marker(processor)

    def read(self, images: Sequence[Image]) -> Pictured:
        """Open each image, and have the processor say by which tokens the model reads it."""
        opened = [open_image(image.source) for image in images]
        tokens = [tuple(self._process([[image]])["input_ids"][0].tolist()) for image in opened]
        digest = hashlib.sha256()
        for image in opened:
            digest.update(f"{image.size}".encode() + image.tobytes())
        return Pictured(tuple(tokens), Images(self, tuple(images), digest.hexdigest()))

    def save(self, folder: Path) -> None:
        """Write the processor, with the chat template that its tokenizer has now."""
        self.processor.chat_template = self.processor.tokenizer.chat_template
        self.processor.save_pretrained(str(folder))

    def lay(self, images: Sequence[Sequence[Image]], input_ids: Any) -> dict[str, Any]:
        """What the model is given for the images of several sequences, besides `input_ids` [batch seq]."""
        opened = [[open_image(image.source) for image in each] for each in images]
        found = self._process(opened)
        laid = {name: value for name, value in found.items() if name not in TEXT_INPUTS}
        if "mm_token_type_ids" in found:  # for each token whether it stands for an image
            kinds = self.processor.create_mm_token_type_ids(input_ids.tolist())
            laid["mm_token_type_ids"] = torch.tensor(kinds)
        return laid

    def _process(self, images: Sequence[Sequence[Any]]) -> Mapping[str, Any]:
        texts = [self.marker * len(each) for each in images]
        nested = [list(each) for each in images]
        found: Mapping[str, Any] = self.processor(
            text=texts, images=nested, return_tensors="pt", padding=True, add_special_tokens=False
        )
        return found


@dataclass(frozen=True)
class Images:
    """The images of one sequence: where they lie, and who reads them."""

    reader: ProcessorReader
    images: tuple[Image, ...]
    fingerprint: str

    def laid(self, others: Sequence[Inputs], input_ids: Any) -> Mapping[str, Any]:
        """Pixels and all that goes with them, as this model wants them for several sequences."""
        return self.reader.lay([other.images for other in others if isinstance(other, Images)], input_ids)


def open_image(source: str | bytes) -> Any:
    """Open an image in RGB. ValueError or OSError where there is none."""
    import PIL.Image

    if isinstance(source, str) and "://" in source:
        raise ValueError(f"{source} is an address; download the image and name its file")
    try:
        with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert("RGB")
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{source if isinstance(source, str) else 'what was given'} is no image") from error


def image_marker(processor: Any) -> str:
    """What the chat template writes for an image: found by rendering a message with one and without.

    Raises TunekitError where that is not special tokens alone, which no text of a user can write.
    """
    parts: list[dict[str, str]] = [{"type": "text", "text": "?"}]
    plain, shown = (_rendered(processor, content) for content in (parts, [{"type": "image"}, *parts]))
    marker = str(processor.image_token) if not shown or plain == shown else _added(plain or "", shown).strip()
    tokenizer = processor.tokenizer
    known = tokenizer.get_added_vocab()
    pieces = tokenizer.tokenize(marker)
    if not pieces or any(piece not in known for piece in pieces):
        what = (
            f"the chat template of {tokenizer.name_or_path} writes {marker!r} for an image, which is no special token"
        )
        raise TunekitError(what, "use the model's own processor and chat template")
    return marker


def _rendered(processor: Any, content: list[dict[str, str]]) -> str | None:
    """The text of a message; None where there is no template, or none that takes contents in parts."""
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    if not template:
        return None
    try:
        text: str = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, tokenize=False
        )
    except Exception:  # a template may raise whatever its expressions do, and the token alone is used then
        return None
    return text


def _added(shorter: str, longer: str) -> str:
    """What a text has more than another, in one piece."""
    start = 0
    while start < len(shorter) and shorter[start] == longer[start]:
        start += 1
    return longer[start : start + len(longer) - len(shorter)]
