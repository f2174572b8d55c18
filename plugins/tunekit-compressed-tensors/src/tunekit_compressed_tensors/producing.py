"""Store a dense model compressed: weights rounded to evenly spaced values, the largest of each group kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def compress_(model: Any, folder: Path, bits: int, group: int, ignore: tuple[str, ...] = ("lm_head",)) -> None:
    """Round the linear layers of a dense model in place, but those to ignore, and write it to a folder.

    `bits` 2 to 8 for each weight; `group` weights of a row share a scale. vLLM and transformers read what is written.
    """
    from compressed_tensors.compressors import ModelCompressor  # type: ignore[import-untyped,unused-ignore]
    from compressed_tensors.quantization import (  # type: ignore[import-untyped,unused-ignore]
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    kind: Any = QuantizationArgs
    args = kind(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=list(ignore))
    apply_quantization_config(model, config, show_progress=False)
    for layer in model.modules():
        if hasattr(layer, "quantization_scheme"):
            _measure_(layer, args, group)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    compressor.remove_decompression_hook(model)
    model.save_pretrained(str(folder))
    compressor.update_config(str(folder))


def _measure_(layer: Any, args: Any, group: int) -> None:
    """Choose the scales of a layer by the largest weight of each group, in place."""
    from compressed_tensors.quantization.utils import calculate_qparams  # type: ignore[import-untyped,unused-ignore]

    grouped = layer.weight.data.unflatten(-1, (-1, group))  # [out groups group]
    scales, zero_points = calculate_qparams(grouped.amin(dim=-1), grouped.amax(dim=-1), args)
    layer.weight_scale.data.copy_(scales)
    if hasattr(layer, "weight_zero_point"):
        layer.weight_zero_point.data.copy_(zero_points)
