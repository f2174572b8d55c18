"""The blocks of a model compiled by torch.compile, for the duration of a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

from tunekit.errors import TunekitError

from .attentions import SegmentAttention, attention_named, attention_of
from .config import ComputeConfig
from .forward import base_model
from .layers import find_layers
from .segments import NAME


@contextmanager
def compiled(model: Any, config: ComputeConfig) -> Iterator[dict[str, Any]]:
    """Compile the forward of each block of this model instance, and put everything back; yields facts for the record.

    Blocks of one class share what is compiled, whatever their number, and lengths are symbols, so that batches of other
    sizes compile nothing anew. Left out, and computed as ever: what is outside of the blocks, the output head above
    all; and attention without padding, a loop over segments on the host, at which the compiled code is interrupted.
    """
    if not config.compile:
        yield {}
        return
    blocks = list(find_layers(model) or ())
    if not blocks:
        raise TunekitError("compute.compile compiles the blocks of a model, and none are found", "leave it out")
    name = attention_of(base_model(model)).name
    attention = attention_named(name)
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=config.compile_backend, dynamic=True)
    if name == NAME or isinstance(attention, SegmentAttention):
        AttentionInterface.register(name, _interrupting(attention))
    try:
        yield {"compiled_blocks": len(blocks), "compile_backend": config.compile_backend}
    finally:
        AttentionInterface.register(name, attention)
        for block in blocks:
            del block.forward


def _interrupting(attention: Any) -> Any:
    """The same attention, at which compiled code is interrupted."""
    call = torch.compiler.disable(attention)  # type: ignore[no-untyped-call]
    if not isinstance(attention, SegmentAttention):
        return call
    traits = attention.traits

    class Interrupting(SegmentAttention):
        """Attention outside of compiled code."""

        def __call__(self, *tensors: Any, **options: Any) -> tuple[torch.Tensor, None]:
            """Attend as the other does."""
            attended: tuple[torch.Tensor, None] = call(*tensors, **options)
            return attended

    Interrupting.traits = traits
    return Interrupting()
