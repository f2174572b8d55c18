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
    kinds = {type(block): None for block in blocks(model)}
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]


def not_whole(model: Any) -> str | None:
    """The class of a block with experts that DeepSpeed, which has the model by now, does not gather as one, or None."""
    from deepspeed.utils import z3_leaf_module  # type: ignore[import-not-found, import-untyped]

    return next((type(block).__name__ for block in blocks(model) if not z3_leaf_module(block)), None)


def blocks(model: Any) -> list[Any]:
    """The blocks of a model that hold experts."""
    return [module for module in model.modules() if EXPERTS in dict(module.named_children())]
