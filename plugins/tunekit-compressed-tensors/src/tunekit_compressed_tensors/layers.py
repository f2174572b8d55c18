"""Compressed layers that stay compressed: dense for each product, and for good when asked."""

from __future__ import annotations

from typing import Any

from tunekit.errors import TunekitError
from tunekit_transformers.quantizing import forget_quantization


def compressed(model: Any, dtype: str) -> Any:
    """Put layers that keep the compressed parts in the place of the loaded ones, in place; return the model.

    transformers has the library make all weights dense in the first forward, which would cost what they saved.
    TunekitError where nothing is compressed, or something that is no linear layer.
    """
    import torch

    layers = {name: layer for name, layer in model.named_modules() if _is_compressed(layer)}
    if not layers:
        what = "use.compressed-tensors: the loaded model has no compressed layer"
        raise TunekitError(what, "take it out, or name a checkpoint that llm-compressor has written")
    for name, layer in layers.items():
        if not isinstance(layer, torch.nn.Linear):
            what = f"use.compressed-tensors: {name} is compressed, and is no linear layer but a {type(layer).__name__}"
            raise TunekitError(what, "name a copy with plain weights")
        model.set_submodule(name, _stored(layer, getattr(torch, dtype)))
    model.hf_quantizer.compressor.remove_decompression_hook(model)
    return model


def dense(model: Any) -> Any:
    """Put ordinary layers of the same weights in the place of the compressed ones; return the model."""
    from tunekit_transformers.frozen_product import StoredLinear, dense_linear

    for name, layer in list(model.named_modules()):
        if isinstance(layer, StoredLinear):
            model.set_submodule(name, dense_linear(layer.weight, layer.bias).train(layer.training))
    return forget_quantization(model)


def _is_compressed(layer: Any) -> bool:
    from compressed_tensors.quantization import QuantizationStatus  # type: ignore[import-untyped,unused-ignore]

    return bool(getattr(layer, "quantization_status", None) == QuantizationStatus.COMPRESSED)


def _stored(layer: Any, dtype: Any) -> Any:
    from compressed_tensors.compressors import BaseCompressor  # type: ignore[import-untyped,unused-ignore]
    from compressed_tensors.utils import get_direct_state_dict  # type: ignore[import-untyped,unused-ignore]

    from tunekit_transformers.frozen_product import StoredLinear

    scheme = layer.quantization_scheme
    codec: Any = BaseCompressor.get_value_from_registry(scheme.format.value)

    def weight(stored: StoredLinear) -> Any:
        return codec.decompress(stored.parts(), scheme)["weight"].to(dtype)

    parts = {name: part for name, part in get_direct_state_dict(layer).items() if part is not None and name != "bias"}
    return StoredLinear((layer.out_features, layer.in_features), parts, layer.bias, weight)
