"""AQLM's layers, computed by the definition: W = s * sum over codebooks of the entry that the code names.

The library's kernels for a CPU are left aside. For codebooks of 256 entries they turn the codes around in place in the
first forward, whose result an adapter cannot be added to in place, and race between threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunekit.errors import TunekitError
from tunekit_transformers.frozen_product import StoredLinear, dense_linear
from tunekit_transformers.quantizing import forget_quantization

PARTS = ("codes", "codebooks", "scales")


def coded(model: Any) -> Any:
    """Put layers that compute by the definition in the place of AQLM's, in place; return the model.

    TunekitError where the loaded model has none.
    """
    from aqlm import QuantizedLinear  # type: ignore[import-untyped,unused-ignore]

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    if not layers:
        raise TunekitError("use.aqlm: the loaded model has no layer of AQLM", "name a checkpoint that AQLM has made")
    for name, layer in layers.items():
        parts = {part: getattr(layer, part).data for part in PARTS}
        model.set_submodule(name, StoredLinear((layer.out_features, layer.in_features), parts, layer.bias, weight_of))
    return model


def weight_of(layer: StoredLinear) -> Tensor:
    """The weight [out in] that a layer's parts stand for."""
    return decoded(**layer.parts())


def decoded(codes: Tensor, codebooks: Tensor, scales: Tensor) -> Tensor:
    """W[out in] of `codes` [out groups, in groups, codebooks], `codebooks` [codebooks, size, rows, columns] of a group.

    `scales` [out groups, 1, 1, 1]. Codes are signed as they are stored, and mean the number modulo the size.
    """
    books, size, rows, columns = codebooks.shape
    out_groups, in_groups, _ = codes.shape
    numbers = codes.long() % size
    entries = sum(
        codebooks[book][numbers[..., book]] for book in range(books)
    )  # [out groups, in groups, rows, columns]
    assert isinstance(entries, Tensor)
    return (entries * scales).transpose(1, 2).reshape(out_groups * rows, in_groups * columns)


def dense(model: Any, dtype: str) -> Any:
    """Put ordinary layers of the same weights, in `dtype`, in the place of the coded ones; return the model."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, StoredLinear):
            new = dense_linear(layer.weight.to(getattr(torch, dtype)), layer.bias)
            model.set_submodule(name, new.train(layer.training))
    return forget_quantization(model)
