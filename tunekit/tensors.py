"""What holds the numbers of a tensor, asked without importing torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def plain_tensors(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The tensors that hold the values, by name: quantised ones of some libraries wrap them, and know no comparison."""
    if not hasattr(value, "__tensor_flatten__"):
        yield name, value
        return
    for inner in value.__tensor_flatten__()[0]:
        yield from plain_tensors(f"{name}.{inner}", getattr(value, inner))
