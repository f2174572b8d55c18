"""Blocks that ZeRO-3 has to gather whole: mixtures of experts, of which each process computes others."""

from __future__ import annotations

from typing import Any

EXPERTS = "experts"
"""What the part of a block is called that holds its experts, in transformers and in most code of models."""


def leaf_classes(model: Any) -> list[str]:
    """The full names of the classes of all blocks that hold experts, each once.

    Weights in parts are gathered layer by layer, in all processes at once. Where a token chooses its experts, one
    process would gather an expert that another does not call, and each would wait for the other for ever. So such a
    block is gathered as one, experts that nobody calls too.
    """
    kinds = {type(module): None for module in model.modules() if EXPERTS in dict(module.named_children())}
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]
