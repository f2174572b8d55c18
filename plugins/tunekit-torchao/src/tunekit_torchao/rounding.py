"""Quantisation-aware training: every product sees the weights as they will be rounded.

The rounding itself passes gradients through unchanged (*Estimating or Propagating Gradients Through Stochastic
Neurons*, arXiv 1308.3432), so that the weights learn to be good once rounded.
"""

from __future__ import annotations

from typing import Any

from tunekit_transformers.quantizing import layers_to_quantize, refuse_transposed, refuse_uneven

from .kinds import base_config
from .qat import QatConfig


def prepare_(config: QatConfig, model: Any) -> list[str]:
    """Put a layer that rounds in the place of each linear one but the head, in place; return their names.

    The weights themselves stay the same parameters. PlanError where rows do not divide into groups, and for a `Conv1D`.
    """
    import torch
    from torchao.quantization import quantize_  # type: ignore[import-untyped,unused-ignore]
    from torchao.quantization.qat import QATConfig  # type: ignore[import-untyped,unused-ignore]

    layers = layers_to_quantize(model, config.skip, "use.qat.skip")
    refuse_transposed(layers, "use.qat", "leave it out: torchao rounds no such layer")
    refuse_uneven(layers, config.group, "use.qat.group", "name the layer in skip")
    settings: Any = QATConfig(base_config(config.kind, config.group), step="prepare")
    with torch.random.fork_rng():  # it makes new layers, and those draw weights that nobody uses
        quantize_(model, settings, filter_fn=lambda _, name: name in layers)
    return list(layers)


def undo_(model: Any, names: list[str]) -> None:
    """Put ordinary layers back, of the weights as they are now."""
    import torch

    with torch.random.fork_rng():
        for name in names:
            layer = model.get_submodule(name)
            model.set_submodule(name, layer.to_linear().train(layer.training))
