"""What a turn says: one text, or a list of parts, of which each is a text, an image, a thought or a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.values import Image, ToolCall

from ..problems import kind
from .checks import Unusable, shown, text
from .images import Pictures
from .tools import read_calls

_TEXTS = ("text", "input_text", "output_text")
_IMAGES = ("image", "image_url", "input_image")
_THOUGHTS = ("reasoning", "thinking")


@dataclass(frozen=True)
class Content:
    """The text of a turn, the images in it, and what parts of their own say is thought and called."""

    text: str = ""
    images: tuple[Image, ...] = ()
    thinking: str | None = None
    calls: tuple[ToolCall, ...] = ()


def read_content(value: Any, pictures: Pictures, place: str) -> Content:
    """Read one text, or a list of parts that stand one behind the other. Raises Unusable."""
    if not isinstance(value, (list, tuple)):
        return Content(*pictures.cut(text(value, "the content of a turn", blank=True, place=place)))
    return _joined(_part(part, pictures, place) for part in value)


def _joined(parts: Iterable[Content]) -> Content:
    whole = Content()
    for part in parts:
        moved = tuple(Image(image.source, image.at + len(whole.text)) for image in part.images)
        thinking = whole.thinking if part.thinking is None else (whole.thinking or "") + part.thinking
        whole = Content(whole.text + part.text, whole.images + moved, thinking, whole.calls + part.calls)
    return whole


def _part(part: Any, pictures: Pictures, place: str) -> Content:
    if not isinstance(part, Mapping):
        raise Unusable(f"a part of a content is {kind(part)}, expected an object", 'write {"type": "text", ...}', place)
    of = part.get("type")
    if of in _TEXTS:
        return Content(*pictures.cut(_written(part, "text", place)))
    if of in _IMAGES:
        return Content(images=(Image(pictures.of_part(part, place)),))
    if of in _THOUGHTS:
        return Content(thinking=_written(part, of, place))
    if of == "tool_call":
        return Content(calls=read_calls(part.get("value"), place))
    remedy = f"leave the row out (type {shown(of)}; texts, images, thoughts and calls are read)"
    raise Unusable("a content has a part of an unknown type", remedy, place)


def _written(part: Mapping[str, Any], key: str, place: str) -> str:
    """The text of a part, under its own key or under `value`."""
    value = part.get(key)
    return text(part.get("value") if value is None else value, "the text of a part", blank=True, place=place)
