"""Images: those of a row's column `images`, handed out in order to the places that ask for one. None is opened."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.values import Image, Row

from ..problems import kind
from .checks import Unusable, text

PLACEHOLDER = "<image>"
"""Where an image stands in a text, as LLaMA-Factory's users write it."""

_KEYS = ("bytes", "path", "url", "image_url", "image", "value")
"""Where an object, or a part of a content, may hold its image; the bytes go before the path they came from."""


class Pictures:
    """The images of one row. Where it has no column for them, placeholders are ordinary text.

    `folder` is where the paths start.
    """

    def __init__(self, given: Sequence[str | bytes] | None, folder: str | None, taken: int = 0) -> None:
        self._given, self._folder, self._taken = given, folder, taken

    @classmethod
    def of(cls, row: Row, folder: str | None) -> Pictures:
        """Those of column `images`: one, or a list. Raises Unusable where one is neither path, address nor bytes."""
        if "images" not in row.values:
            return cls(None, folder)
        value = row.values["images"]
        values = () if value is None else value if isinstance(value, (list, tuple)) else (value,)
        return cls([source_of(each, folder, f"image {number}") for number, each in enumerate(values, 1)], folder)

    def branch(self, anew: bool = False) -> Pictures:
        """A second way on from here, or `anew` from the first image."""
        return Pictures(self._given, self._folder, 0 if anew else self._taken)

    def cut(self, written: str) -> tuple[str, tuple[Image, ...]]:
        """Take the placeholders out of a text and put images in their place."""
        if self._given is None or PLACEHOLDER not in written:
            return written, ()
        first, *others = written.split(PLACEHOLDER)
        images = []
        for other in others:
            images.append(Image(self._take(), len(first)))
            first += other
        return first, tuple(images)

    def of_part(self, part: Mapping[str, Any], place: str) -> str | bytes:
        """The image that a part of a content brings, or the next one where the part only marks the place."""
        value = next((part[key] for key in _KEYS if part.get(key)), None)
        return self._take() if value is None else source_of(value, self._folder, place)

    def finish(self) -> None:
        """Raise Unusable where there are images that no text asks for."""
        if self._given is not None and self._taken != len(self._given):
            raise self._mismatch(f"{len(self._given)} images, {self._taken} places")

    def _take(self) -> str | bytes:
        if self._given is None or self._taken >= len(self._given):
            raise self._mismatch(f"{len(self._given or ())} images, more places")
        self._taken += 1
        return self._given[self._taken - 1]

    def _mismatch(self, found: str) -> Unusable:
        return Unusable(
            "the images do not match the places they stand in",
            f"write {PLACEHOLDER} once for each image of column images, in order (found: {found})",
        )


def source_of(value: Any, folder: str | None, place: str) -> str | bytes:
    """A path, an address or bytes; also as an object that holds one. Relative paths start at `folder`.

    An image that PIL has opened, as data sets from the hub give it, is written as a file without loss.
    """
    if isinstance(value, Mapping):
        value = next((value[key] for key in _KEYS if value.get(key) is not None), None)
    if isinstance(value, bytes) and value:
        return value
    if callable(getattr(value, "convert", None)) and callable(getattr(value, "save", None)):
        return _bytes_of(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise Unusable(
            f"an image is {'empty' if value == b'' else kind(value)}, expected a path, an address or bytes",
            "give a path, the bytes of a file, or an image that PIL has opened",
            place,
        )
    address = text(value, "the path of an image", place=place)
    if folder is None or "://" in address or address.startswith("data:"):
        return address
    return os.path.join(folder, address)


def _bytes_of(opened: Any) -> bytes:
    """The pixels of an opened image as a PNG."""
    file = io.BytesIO()
    opened.convert("RGB").save(file, format="PNG")
    return file.getvalue()
